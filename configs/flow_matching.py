"""A class-conditional flow of MNIST's handwritten digits, with the network of configs/ddpm.py.

python train.py configs/flow_matching.py

About 60 minutes on two CPU cores; not measured yet. `python evaluate.py runs/flow_matching --samples 10000 --ode-images
1000` adds FID by the MNIST classifier and the likelihood in bits per dimension.
"""

from zoo import Optimizer, Run
from zoo.data.images import Images
from zoo.flow_matching import FlowMatching, FlowScoring

run = Run(
    family=FlowMatching(channels=(16, 32, 64), layers=1, attention=(7,), groups=8),
    data=Images(),
    optimizer=Optimizer(
        learning_rate=2e-3, warmup_steps=200, final_fraction=0.05, weight_decay=0.0, clip_norm=1.0, ema_decay=0.9995
    ),
    steps=40_000,
    batch_size=16,
    log_every=100,
    eval_every=2500,
    eval_batches=64,
    save_every=1000,
    sample_every=2500,
    scoring=FlowScoring(),
)
