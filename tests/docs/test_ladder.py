"""The ladder's tables of FID, from scores written by hand."""

import pytest

from benchmarks import ladder_fid
from benchmarks.ladder_fid import fid_points, tables

METRICS = [{"step": step, "seconds": 3.0 * step, "split": "train"} for step in (100, 300, 1200)]


def scored(step: int, fid: float, **settings) -> dict:
    return {"split": "test", "step": step, "fid": fid, "samples": 10} | settings


@pytest.fixture(autouse=True)
def _figure(monkeypatch, tmp_path):
    monkeypatch.setattr(ladder_fid, "FIGURE", tmp_path / "ladder_fid.png")


def test_calls_are_of_the_last_checkpoint_and_minutes_of_the_setting_with_most_checkpoints():
    euler, heun = {"sampler": "euler", "steps": 50}, {"sampler": "heun", "steps": 5}
    scores = [scored(100, 30.0, **euler), scored(300, 10.0, **euler), scored(1200, 2.0, **euler)]
    scores += [scored(1200, 4.0, **heun), scored(1200, 1.0, **euler) | {"split": "dev"}]
    found = tables({"ddpm": {"fid_points": fid_points(METRICS, scores)}})
    assert "| calls of the network for a sample | 9 | 50 |" in found, "the last of Heun's steps is Euler's"
    assert "| DDPM | 4.00 | 2.00 |" in found
    assert "| DDPM | 30.00 | 10.00 |  | 2.00 |" in found, "at 5, 15 and 60 minutes; there is none near 30"
    assert ladder_fid.FIGURE.exists()


def test_guidance_calls_the_network_twice():
    settings = [{"sampler": "midpoint", "steps": 5, "guidance": 2.0}, {"sampler": "confidence", "steps": 8}]
    scores = [scored(1200, 3.0, **each) for each in settings]
    found = tables({"vqvae_masked_diffusion": {"fid_points": fid_points(METRICS, scores)}})
    assert "| calls of the network for a sample | 8 | 20 |" in found


def test_a_row_may_have_its_own_number_of_calls():
    found = tables({"dcgan": {"fid_points": fid_points(METRICS, [scored(1200, 3.0)])}})
    assert "| calls of the network for a sample | 1 |" in found


def test_no_figure_makes_no_table():
    assert tables({"ddpm": {"fid_points": []}}) == []
