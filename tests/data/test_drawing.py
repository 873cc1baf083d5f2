import random

from quilate.data.sampling import draw

ROWS = [f"fila {number}" for number in range(50)]


def test_what_is_drawn_depends_on_content_and_not_on_order() -> None:
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    drawn = draw(ROWS, 12, str)
    assert set(draw(shuffled, 12, str)) == set(drawn) and drawn == sorted(drawn, key=ROWS.index)
    assert drawn != ROWS[:12]


def test_one_row_more_changes_at_most_one_of_those_drawn() -> None:
    assert len(set(draw([*ROWS, "otra"], 12, str)) - set(draw(ROWS, 12, str))) <= 1


def test_all_are_taken_where_they_fit() -> None:
    assert draw(ROWS, 50, str) == draw(ROWS, None, str) == ROWS
    assert draw(["igual"] * 3, 2, str) == ["igual"] * 2
