"""How choosing on the test split flatters: sets of ships, and the difference of the two choices."""

import numpy as np
import pytest

from benchmarks import flattery
from datasets.catalogue import read_hoss
from datasets.records import DISTRACTOR
from tests.chip_files import write_hoss
from utils.errors import UsageError


def test_a_set_gains_what_its_own_choice_is_above_that_of_the_others():
    figures = np.array([[0.5, 0.9, 0.4], [0.6, 0.2, 0.6]])  # set 0 and 2 like the second epoch, set 1 the first
    # the others of set 0 and of set 2 like the first epoch (1.3 > 0.8; 1.4 > 0.8), those of set 1 the second (1.2 > 0.9)
    assert flattery.flatteries(figures) == pytest.approx([0.1, 0.7, 0.2])
    assert flattery.flatteries(np.array([[0.5, 0.5], [0.4, 0.3]])) == pytest.approx([0, 0])


def test_sets_share_no_ship_and_no_distractor(tmp_path, monkeypatch):
    monkeypatch.setattr(flattery, "SHIPS", 3)
    data = read_hoss(write_hoss(tmp_path, train_ships=2, test_ships=8), train=False)
    sets = flattery.deal_ships(data, seed=0)
    assert len(sets) == 2
    seen = []
    for protocols in sets:
        chips = [data.images[index] for side in (protocols["ALL"].query, protocols["ALL"].gallery) for index in side]
        ships = {chip.ship for chip in chips if chip.ship != DISTRACTOR}
        assert len(ships) == 3
        seen.append(ships | {chip.path.name for chip in chips if chip.ship == DISTRACTOR})
    assert not seen[0] & seen[1]
    monkeypatch.setattr(flattery, "SHIPS", 5)
    with pytest.raises(UsageError, match="draw more"):
        flattery.deal_ships(data, seed=0)
