"""`make gpu` on the CPU: its cases at tiny sizes, its limits, its table."""

import json
import subprocess
import sys

import pytest

from benchmarks import gpu
from benchmarks.gpu_table import table
from benchmarks.gpu_work import gpt_flops, peak_flops

DEVICE = {"platform": "gpu", "kind": "NVIDIA H100 80GB HBM3", "devices": 1, "jax": "0.10.2", "python": "3.12.3"}
QUICK = ["train:image_vae:bfloat16", "contract:image_vae"]


def test_without_a_gpu_it_ends_in_one_sentence(capsys):
    assert gpu.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "JAX runs on cpu here; make gpu needs a GPU, or --smoke to try it out\n"


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(gpu, "is_there", lambda name: name not in ("optax", "einops", "PIL"))
    assert gpu.obstacle() == (
        f"{sys.executable} has no optax, einops; run make gpu without PYTHON to install what is needed"
    )
    assert gpu.left_out("train:ddpm:float32") == "skipped: the image families need pillow"
    assert gpu.left_out("train:lstm_lm:float32") is None


def test_an_old_jax_is_named(monkeypatch):
    monkeypatch.setattr(gpu.importlib.metadata, "version", lambda name: "0.9.2")
    assert gpu.obstacle() == f"{sys.executable} has jax 0.9.2; 0.10 or newer is needed"


def test_a_case_that_fails_or_hangs_loses_no_other(monkeypatch, tmp_path, capsys):
    code = {
        "device": f"print('{json.dumps(DEVICE)}')",
        "gpt2:zoo": "import time; time.sleep(60)",
        "gpt2:torch": "raise ValueError('no such thing')",
        "contract:ddpm": "import sys; sys.exit('out of memory')",
        "again:transformer_lm": 'print(\'{"digest": "0"}\')',
    }
    monkeypatch.setattr(gpu, "command_of", lambda case, smoke: [sys.executable, "-c", code[case]])
    monkeypatch.setattr(gpu, "LIMIT", 3)
    assert gpu.main(["--out", str(tmp_path), "--only", *list(code)[1:]]) == 1
    cases = json.loads((tmp_path / "gpu.json").read_text())["cases"]
    assert cases["gpt2:zoo"] == {"error": "took more than 3 s"}
    assert cases["gpt2:torch"]["error"] == "ValueError: no such thing"
    assert cases["contract:ddpm"]["error"] == "out of memory"
    assert cases["again:transformer_lm"]["digest"] == "0"
    assert "took more than 3 s" in (tmp_path / "gpu.md").read_text()
    assert capsys.readouterr().out.strip() == (tmp_path / "gpu.md").read_text().strip()
    assert gpu.main(["--minutes", "0", "--out", str(tmp_path), "--only", "gpt2:zoo"]) == 1
    cases = json.loads((tmp_path / "gpu.json").read_text())["cases"]
    assert cases["gpt2:zoo"]["error"] == "not run: the time was over"


@pytest.mark.slow
def test_tiny_cases_run_on_the_cpu(tmp_path):
    assert gpu.main(["--smoke", "--out", str(tmp_path), "--only", *QUICK]) == 0
    cases = json.loads((tmp_path / "gpu.json").read_text())["cases"]
    assert cases["contract:image_vae"]["resumed_bitwise"]
    assert cases["train:image_vae:bfloat16"]["per_second"] > 0


def test_families_are_there_without_what_only_data_and_flags_need(tmp_path):
    absent = ("grain", "tensorflow_datasets", "array_record", "tyro", "tensorboardX", "rouge_score", "beartype")
    # None in sys.modules is what Python takes for a package that is not installed.
    code = (
        f"import sys; sys.modules |= dict.fromkeys({absent!r}); sys.path.insert(0, {str(gpu.ROOT)!r})\n"
        "from benchmarks.gpu_cases import stand_in_for_tyro\n"
        "assert stand_in_for_tyro()\n"
        "from benchmarks.gpu_work import FAMILIES, gpt2, make_work\n"
        "assert all(make_work(name, tiny).batch(0) for name in FAMILIES for tiny in (True, False)) and gpt2(False)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_every_case_runs_on_the_cpu(tmp_path):
    assert gpu.main(["--smoke", "--minutes", "30", "--out", str(tmp_path)]) == 0
    cases = json.loads((tmp_path / "gpu.json").read_text())["cases"]
    assert set(cases) == {*gpu.MEASURED, *gpu.CHECKS}
    assert cases["again:transformer_lm"]["digest"] == cases["contract:transformer_lm"]["digest"]


def test_operations_of_gpt_2_by_hand():
    # nanoGPT counts 6 N + 12 L H Q T a token, N = 123,532,032 without positions, and attention to all 1,024 keys;
    # half of them, and the position itself, are seen.
    by_nanogpt = 6 * 123_532_032 + 12 * 12 * 12 * 64 * 1024
    hidden = 12 * 12 * 12 * 64 * (1024 - 1025 / 2)
    assert gpt_flops(12, 768, 1024, 50257, 1) == pytest.approx(by_nanogpt - hidden)
    assert gpt_flops(12, 768, 1024, 50257, 7) == pytest.approx(7 * gpt_flops(12, 768, 1024, 50257, 1))


def test_utilisation_is_against_the_data_sheet():
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("cpu") is None
    figures = {
        "per_second": 400e3, "unit": "tokens", "peak_bytes": 2**34, "utilisation": 0.321,
        "peak_flops_per_second": 989e12,
    }  # fmt: skip
    cases = {"gpt2:zoo": figures, "gpt2:torch": figures | {"per_second": 200e3}}
    written = table({"device": DEVICE, "smoke": False, "not_checked": {}, "cases": cases})
    assert "| zoo | 400,000 tokens/s, 16.00 GiB | 32.1% of 989 TFLOP/s |" in written
    assert "| zoo / PyTorch | 2.00 | |" in written
    cases["gpt2:zoo"] = figures | {"utilisation": None}
    assert "unknown: the data sheet's peak" in table(
        {"device": DEVICE, "smoke": False, "not_checked": {"grain": "reading data"}, "cases": cases}
    )
