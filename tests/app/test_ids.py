"""Typed ids."""

import re
import time

from app.ids import first_id, new_id


def test_ids_are_typed_unique_and_sort_by_time() -> None:
    ids = []
    for _ in range(5):
        ids.append(new_id("job"))
        time.sleep(0.002)
    assert ids == sorted(ids)
    assert len({new_id("job") for _ in range(1000)}) == 1000
    assert all(re.fullmatch(r"job_[0-9a-z]{26}", each) for each in ids)


def test_the_first_id_of_a_time_parts_earlier_ids_from_later_ones() -> None:
    before = new_id("job")
    time.sleep(0.002)
    now = time.time()
    time.sleep(0.002)
    assert before < first_id("job", now) < new_id("job")
    assert first_id("job", now) == first_id("job", now)
