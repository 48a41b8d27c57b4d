"""A masked diffusion model of Shakespeare's plays, of the size of `configs/transformer_lm.py` and with its context.

python train.py configs/masked_diffusion.py
python sample.py runs/masked_diffusion --prompt "ROMEO:" --steps 32
python sample.py runs/masked_diffusion --fill "To be or [MASK][MASK][MASK] to be"

A row's estimate of the bound has the noise of few tokens where few are masked, as much as if 13 of its 64 targets were
scored, so that batches are larger than the Transformer's and steps fewer, for about the same time.
"""

from zoo import Optimizer, Run
from zoo.data.text import Text
from zoo.masked_diffusion import MaskedDiffusion

run = Run(
    family=MaskedDiffusion(layers=4, heads=4, width=128, context=64, dropout=0.0),
    data=Text(),
    optimizer=Optimizer(
        name="muon",
        learning_rate=4e-3,
        warmup_steps=100,
        final_fraction=0.1,
        beta2=0.99,
        weight_decay=0.1,
        clip_norm=1.0,
        ema_decay=0.99,
    ),  # fmt: skip
    steps=1200,
    batch_size=32,
    log_every=10,
    eval_every=400,
    eval_batches=20,
    score_every=400,
    save_every=400,
    sample_every=400,
)
