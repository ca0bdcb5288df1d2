"""Progress of a part, reported as progress of the whole."""

from rome_lens.progress import part, silent


def test_a_part_is_reported_as_a_share_of_the_whole():
    seen = []
    inner = part(part(lambda *step: seen.append(step), 500, 500), 0, 1000, what="tracing")
    for done in (0, 1, 4, 5):
        inner(done, 4, "blocks")
    assert seen == [(500, 1000, "tracing"), (625, 1000, "tracing"), (1000, 1000, "tracing"), (1000, 1000, "tracing")]


def test_a_part_may_count_as_the_whole_does_and_pass_its_words_on():
    seen = []
    part(lambda *step: seen.append(step), 3, 0, whole=20)(7, 25, "editing")
    part(lambda *step: seen.append(step), 3, 1, whole=20)(0, 0, "editing")
    assert seen == [(3, 20, "editing"), (3, 20, "editing")]
    assert part(None, 0, 1) is silent
