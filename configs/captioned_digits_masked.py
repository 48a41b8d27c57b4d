"""Text to image by masked diffusion of the codes of images, given their captions (Muse's way).

python train.py configs/captioned_digits_vqvae.py
python train.py configs/captioned_digits_masked.py
python sample.py runs/captioned_digits_masked --prompt "a red 3 left of a blue 7" --n 8 --steps 16 --guidance 2

With 3,000 steps, which took 48 minutes on one CPU core after the codec's 18, samples do not follow their captions: of
1,000 of test captions, by confidence in 16 steps with guidance 2, a reader finds places right in all, colours in 62 %
and everything in 11 %.
"""

from zoo import Optimizer, Run
from zoo.data.captions import CaptionedTokens
from zoo.masked_diffusion import MaskedDiffusion

run = Run(
    family=MaskedDiffusion(layers=4, heads=5, width=160, context=81),
    data=CaptionedTokens(codec="runs/captioned_digits_vqvae", caption_length=16, only_asked=True),
    optimizer=Optimizer(
        name="muon", learning_rate=4e-3, warmup_steps=200, weight_decay=0.1, clip_norm=1.0, ema_decay=0.999
    ),
    steps=3000,
    batch_size=64,
    log_every=50,
    eval_every=1000,
    eval_batches=8,
    save_every=500,
    sample_every=1000,
)
