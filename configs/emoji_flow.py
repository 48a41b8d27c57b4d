"""Emoji from their English names and keywords: flow matching with a U-Net that reads captions, 32x32.

python train.py configs/emoji_flow.py
python sample.py runs/emoji_flow --prompt "red apple" --prompt "smiling cat face" --n 8 --guidance 3

Not measured yet. A tenth of the concepts is held out; `python evaluate.py runs/emoji_flow --samples 200 --extractor
runs/emoji_clip --clip runs/emoji_clip --nearest 1700` tells whether captions are followed and samples are copies.
"""

from zoo import Optimizer, Run
from zoo.data.captions import CaptionedImages
from zoo.data.images.augment import Augment
from zoo.flow_matching import FlowMatching, FlowScoring

run = Run(
    family=FlowMatching(
        channels=(32, 64, 96), layers=1, attention=(8,), groups=8, head_width=8, text_width=96, text_layers=2,
        times="logit_normal",
    ),
    data=CaptionedImages(source="emoji", size=32, caption_length=24, augment=Augment(shift=2)),
    optimizer=Optimizer(
        learning_rate=1e-3, warmup_steps=500, final_fraction=0.05, weight_decay=0.0, clip_norm=1.0, ema_decay=0.999
    ),
    steps=15_000,
    batch_size=32,
    log_every=100,
    eval_every=2500,
    save_every=1000,
    sample_every=2500,
    scoring=FlowScoring(),
)  # fmt: skip
