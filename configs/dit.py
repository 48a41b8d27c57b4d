"""A class-conditional flow of MNIST's handwritten digits by a small diffusion Transformer.

python train.py configs/dit.py

About 60 minutes on two CPU cores; not measured yet.
"""

from zoo import Optimizer, Run
from zoo.data.images import Images
from zoo.flow_matching import FlowMatching, FlowScoring

run = Run(
    family=FlowMatching(network="dit", patch=4, width=128, heads=4, layers=6),
    data=Images(),
    optimizer=Optimizer(
        learning_rate=1e-3, warmup_steps=500, final_fraction=0.05, weight_decay=0.0, clip_norm=1.0, ema_decay=0.9995
    ),
    steps=25_000,
    batch_size=32,
    log_every=100,
    eval_every=2500,
    eval_batches=64,
    save_every=1000,
    sample_every=2500,
    scoring=FlowScoring(),
)
