"""MeanFlow: digits of MNIST in one call of the network, which is that of configs/ddpm.py.

python train.py configs/mean_flow.py

About 60 minutes on two CPU cores; not measured yet. `python sample.py runs/mean_flow --steps 1` draws digits in one
call of the network, and k steps take k calls.
"""

from zoo import Optimizer, Run
from zoo.data.images import Images
from zoo.flow_matching import FlowMatching, FlowScoring

run = Run(
    family=FlowMatching(
        channels=(16, 32, 64), layers=1, attention=(7,), groups=8, objective="mean", times="logit_normal",
        times_mean=-0.4, time_scale=20.0, instants=0.75, weight_power=0.75,
    ),
    data=Images(),
    optimizer=Optimizer(
        learning_rate=1e-3, warmup_steps=500, final_fraction=0.05, weight_decay=0.0, clip_norm=1.0, ema_decay=0.9995
    ),
    steps=20_000,
    batch_size=16,
    log_every=100,
    eval_every=2500,
    eval_batches=64,
    save_every=1000,
    sample_every=2500,
    scoring=FlowScoring(steps=1),
)  # fmt: skip
