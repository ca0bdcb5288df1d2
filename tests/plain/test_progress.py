"""Progress of a part, reported as progress of the whole."""

from rome_lens.progress import part, silent


def test_a_part_is_reported_as_a_share_of_the_whole():
    seen = []
    inner = part(part(lambda *step: seen.append(step), 500, 500), 0, 1000)
    for done in (0, 1, 4, 5):
        inner(done, 4, "blocks")
    assert seen == [(500, 1000, "blocks"), (625, 1000, "blocks"), (1000, 1000, "blocks"), (1000, 1000, "blocks")]


def test_a_part_without_a_share_stays_where_it_begins():
    seen = []
    part(lambda *step: seen.append(step), 3, 0)(7, 25, "editing")
    part(lambda *step: seen.append(step), 3, 1)(0, 0, "editing")
    assert seen == [(3, 1000, "editing"), (3, 1000, "editing")]
    assert part(None, 0, 1) is silent
