"""What each option of `rome-lens edit` for many facts does: arguments, and where in the set's JSON there is what."""

SETTINGS = ("settings",)
SET_EFFECTS = {
    "--method": (["--method", "emmet"], ("variant",), "emmet"),
    "--preserve": (["--preserve", "0.5"], (*SETTINGS, "preserve"), 0.5),
    "--epsilon": (["--method", "emmet", "--epsilon", "0.5"], (*SETTINGS, "epsilon"), 0.5),
    "--energy": (["--method", "alphaedit", "--energy", "0.3"], (*SETTINGS, "energy"), 0.3),
    "--spread": (["--spread", "released", "--at", "block"], ("terms", "spread"), "released"),
    "--at": (["--at", "block"], (*SETTINGS, "at"), "block"),
    "--stop-said": (["--stop-said", "0"], (*SETTINGS, "stop_said"), 0),
    "--least-scale": (["--least-scale", "none"], (*SETTINGS, "least_scale"), None),
    "--keys": (["--keys", "mean"], (*SETTINGS, "keys"), "mean"),
}
SET_ELSEWHERE = {"--requests", "--plus", "--allow-conflicts", "--skip-failed", "--guard", "--workers", "--out"}
