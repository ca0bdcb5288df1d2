"""Second moments of the parts of a text, joined to that of the whole."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rome_lens.data.texts import SELF
from rome_lens.errors import SettingError
from rome_lens.runs import Shard

# What shards of one collection have in common.
_SAME = ("layer", "backend", "dtype", "revision", "prepend_bos", "text_length", "seed", "n_portions")


def join_shards(parts: Sequence[tuple[Float[Tensor, "d_mlp d_mlp"], Mapping[str, Any]]]) -> dict[str, Any]:
    """The fields of the whole's second moment, from those of its shards.

    Args:
        parts: matrix and history of each, the fingerprint in it, in any order.

    Returns:
        The fields; the matrix in float64: the mean over the tokens of all shards.

    Raises:
        SettingError: they are not all of one collection, one is missing, or one is there twice.
    """
    if not parts:
        raise SettingError("there are no second moments to join; expected those of all shards of one collection")
    for _, known in parts:
        if known["shard"] is None:
            raise SettingError(f"a second moment of layer {known['layer']} is of no shard; expected shards alone")
    parts = sorted(parts, key=lambda part: Shard.parse(part[1]["shard"]).number)
    histories = [known for _, known in parts]
    first = histories[0]
    difference = next((text for other in histories[1:] for text in _differences(first, other)), None)
    if difference is not None:
        raise SettingError(f"the shards are not of one collection: {difference}")
    shards = [Shard.parse(known["shard"]) for known in histories]
    # Of a short text the last shards have nothing, and no file.
    needed = range(1, min(shards[0].count, first["n_portions"]) + 1)
    numbers = [shard.number for shard in shards]
    if numbers != list(needed):
        missing = [f"{number}/{shards[0].count}" for number in needed if number not in numbers]
        twice = [str(shard) for shard in dict.fromkeys(shards) if numbers.count(shard.number) > 1]
        said = f"{', '.join(twice)} is there twice" if twice else f"{', '.join(missing)} is missing"
        raise SettingError(f"the shards do not make a whole: {said}; expected each of {len(needed)} once")
    n_tokens = sum(known["n_tokens"] for known in histories)
    total = sum(matrix.double() * known["n_tokens"] for matrix, known in parts)
    assert isinstance(total, Tensor)
    digest = first["digest"]
    if first["source"] == SELF:
        # Nobody has had all that the model wrote in one place.
        digest = sha256("".join(known["digest"] for known in histories).encode()).hexdigest()
    return {
        **first,
        "matrix": total / n_tokens,
        "n_tokens": n_tokens,
        "n_pieces": sum(known["n_pieces"] for known in histories),
        "digest": digest,
        "device": ", ".join(dict.fromkeys(known["device"] for known in histories)),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": sum(known["seconds"] for known in histories),
        "shard": None,
        "n_portions": None,
    }


def _differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """What tells shards of other collections apart."""
    counts = [Shard.parse(known["shard"]).count for known in (first, other)]
    if counts[0] != counts[1]:
        yield f"shards {first['shard']} and {other['shard']}"
    for name in _SAME:
        if first[name] != other[name]:
            yield f"{name} {first[name]!r} and {other[name]!r}"
    difference = first["fingerprint"].difference(other["fingerprint"])
    if difference is not None:
        yield f"two models, {difference}"
    # Every shard reads all of a text, and the digest is of all of it; what a model writes is written in parts.
    if (first["source"] == SELF) != (other["source"] == SELF) or (
        first["source"] != SELF and first["digest"] != other["digest"]
    ):
        yield f"two texts, {first['source']} and {other['source']}"
