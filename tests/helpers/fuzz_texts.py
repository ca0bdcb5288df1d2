"""Random texts as people have them, and as they have them by accident."""

import json
import random
from typing import Any

_WORDS = (
    "The Eiffel Tower tower is in the city of Rome Romeo It Italian Paris a "
    "东京 法国的首都是 巴黎 東京は パリ ﾊﾟﾘ 々 〇 서울은 서울 กรุงเทพ ไทย ပြည် བོད་ القاهرة עיר "
    "São Sa\u0303o I\u0307stanbul straße ﬁne 😀 👩\u200d👩\u200d👧 \u200b \u200d \ufeff \u0301 "
    "19 45 1998 3. 14 ٤٥ ½ $ € 5% - — / \\ pre- C++ np. self._ x= "
    "( ) [ ] { } {} {{}} {0} %s <b> </b> [bold] [/INST] &amp; ' \" ` "
    "“ ” „ « » 「 」 。 ， ： ？ , . ! ? : ... 's ’s ** # @ _ "
)
WORDS = [
    *_WORDS.split(),
    *("<s>", "<unk>", "\x00", "\x01", "\x1b[31m", "\u2028", "\u00a0", "\u3000", "zzzzzzzzzzzzzzzz"),
]
GAPS = [" "] * 12 + ["", "", "", "  ", "\n", "\t", "\r\n", "\u00a0", "\u3000"]
BLANKS = ["", "", "", "", " ", "  ", "\n", "\u00a0"]
# What JSON and callers give where something else was meant.
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    7,
    1e300,
    0.5,
    "",
    " ",
    "x",
    "\ud800",
    [],
    ["x"],
    [[]],
    {},
    {"str": "x"},
    {"x": []},
]


def text(rng: random.Random, most: int = 7) -> str:
    """Words with something between them."""
    parts = [rng.choice(WORDS)]
    for _ in range(rng.randrange(most)):
        parts += [rng.choice(GAPS), rng.choice(WORDS)]
    if rng.random() < 0.01:
        parts.append("\ud800")
    return "".join(parts)


def subject(rng: random.Random, prompt: str) -> str:
    """A part of a text, with white space around it now and then, or something else."""
    kind = rng.random()
    if kind < 0.05:
        return rng.choice(["", " ", prompt, text(rng), "é"])
    start = rng.randrange(len(prompt))
    end = rng.randrange(start, min(len(prompt), start + 14)) + 1
    if kind < 0.8:  # whole words, as far as blanks tell them apart
        start = prompt.rfind(" ", 0, start + 1) + 1
        end = next((i for i in range(end, len(prompt)) if prompt[i] == " "), len(prompt))
    return rng.choice(BLANKS) + prompt[start:end] + rng.choice(BLANKS)


def answer(rng: random.Random) -> str:
    """One word or several."""
    return rng.choice(BLANKS) + text(rng, 3) + rng.choice(BLANKS)


def joined(rng: random.Random) -> str | None:
    """What a caller says that stands between prompt and answer; most say nothing."""
    return rng.choice([None] * 8 + ["", " ", "\n", "-"])


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Bytes cut off, changed, taken out, put in or doubled."""
    damage = rng.randrange(6)
    if not content or damage == 0:
        return content[: rng.randrange(len(content) + 1)]
    at = rng.randrange(len(content))
    if damage == 1:
        return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
    if damage == 2:
        return content[:at] + content[at + rng.randrange(1, 9) :]
    if damage == 3:
        return content[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9))) + content[at:]
    if damage == 4:
        return content[:at] + content[at:][: rng.randrange(200)] + content[at:]
    return rng.choice(
        [b"", b"null", b"[]", b"{}", b"[[]]", b"\xff\xfe", b"[" * 5000, b"\x1f\x8b" + content, content * 2]
    )


def broken(rng: random.Random, value: Any) -> Any:
    """A JSON value of which one member, at any depth, is another, gone, or of another name."""
    value = json.loads(json.dumps(value))
    inside, steps = value, []
    while isinstance(inside, dict | list) and inside and (not steps or rng.random() < 0.8):
        key = rng.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
        steps.append((inside, key))
        inside = inside[key]
    if not steps:
        return rng.choice(ODD)
    holder, key = steps[-1]
    change = rng.random()
    if change < 0.2:
        del holder[key]
    elif change < 0.3 and isinstance(holder, dict):
        holder[rng.choice(["", "x", f"{key}s"])] = holder.pop(key)
    elif change < 0.5 and isinstance(holder[key], str):
        holder[key] = text(rng)
    else:
        holder[key] = rng.choice(ODD)
    return value
