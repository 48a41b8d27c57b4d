"""The ladder's tables of samples, from scores written by hand."""

import pytest

from benchmarks import ladder_captions, ladder_fid
from benchmarks.ladder_captions import caption_points
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


def read(share: float, **settings) -> dict:
    shares = dict.fromkeys(ladder_captions.SHARES, share)
    return scored(
        1200,
        5.0,
        reader="runs/reader",
        **shares,
        **{f"reader_{name}": 0.99 for name in (*shares, "read_all")},
        **settings,
    )


def test_ways_from_captions_to_images_stand_beside_each_other_by_guidance():
    points = caption_points([read(0.5), read(0.9, guidance=2.0), read(0.1) | {"split": "dev"}, scored(1200, 1.0)], 1200)
    run = {"caption_points": points, "minutes": 60.0, "parameters": 2_000_000, "command": "python train.py X"}
    run |= {"test": {"seen_caption_right": 0.8, "unseen_caption_right": 0.7}, "seconds_a_sample": {"2.0": 0.25}}
    found = ladder_captions.tables(
        {"captioned_digits_autoregressive": run, "captioned_digits_vqvae": {"minutes": 16.0}}
    )
    assert "| Transformer over codes | 1 | 64 |  | 10 | 5.00 | 50.0% | 50.0% | 50.0% | 50.0% | 50.0% |" in found
    assert "| Transformer over codes | 2 | 128 | 0.25 | 10 | 5.00 | 90.0% | 90.0% | 90.0% | 90.0% | 90.0% |" in found
    assert (
        "| Transformer over codes | 2.00 M | 60 after the codec's 16 |  | 80.0%, 70.0% | `python train.py X` |" in found
    )


def test_a_ladder_without_captions_has_no_table_of_them():
    assert ladder_captions.tables({"ddpm": {"caption_points": []}}) == []
