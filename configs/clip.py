"""CLIP on captioned digits: one or two of MNIST's digits in six colours, 32x32, with captions from a small grammar.

python train.py configs/clip.py
python evaluate.py runs/clip --split test
python sample.py runs/clip --prompt "a red 3"

Not measured yet. `--data.source emoji --data.size 32` trains on emoji, `--data.path FOLDER` on one's own captioned
pictures. Retrieval is of exact captions: a caption that says the same in other words counts as wrong. No caption is
dropped, since the empty one tells no picture from another.
"""

from zoo import Optimizer, Run
from zoo.clip import CLIP
from zoo.data.captions import CaptionedImages

run = Run(
    family=CLIP(layers=4, heads=4, width=128, features=128, patch=4),
    data=CaptionedImages(caption_dropout=0.0),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=300, weight_decay=0.1, clip_norm=1.0, ema_decay=0.999),
    steps=5000,
    batch_size=128,
    log_every=50,
    eval_every=1000,
    score_every=1000,
    save_every=500,
    sample_every=1000,
)
