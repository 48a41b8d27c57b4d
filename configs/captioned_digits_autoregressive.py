"""Text to image and image to text by one Transformer over captions and the codes of their images (DALL-E's way).

python train.py configs/captioned_digits_vqvae.py
python train.py configs/captioned_digits_autoregressive.py
python sample.py runs/captioned_digits_autoregressive --prompt "a red 3 left of a blue 7" --n 8 --guidance 2
python sample.py runs/captioned_digits_autoregressive --image scene.png

61 minutes on one CPU core with other work beside it, after the codec's 18. In a quarter of the rows the caption follows
the image, so that the model also describes images. Of 2,000 samples of test captions with guidance 2, a reader finds
colours right in 99.7 %, places in 99.7 % and everything in 93.4 % (93.2 % of combinations that were trained on, 93.5 %
of held-out ones); without guidance everything in 60.9 %, with 3 in 96.7 %. Of the captions that the model writes of
test scenes, 88.3 % are right, and 83.8 % of combinations that were not trained on.
"""

from zoo import Optimizer, Run
from zoo.data.captions import CaptionedTokens
from zoo.transformer_lm import TransformerLM

run = Run(
    family=TransformerLM(layers=4, heads=5, width=160, context=81),
    data=CaptionedTokens(codec="runs/captioned_digits_vqvae", caption_length=16, tell=0.25),
    optimizer=Optimizer(
        name="muon", learning_rate=4e-3, warmup_steps=200, weight_decay=0.1, clip_norm=1.0, ema_decay=0.999
    ),
    steps=4500,
    batch_size=64,
    log_every=50,
    eval_every=750,
    save_every=500,
    sample_every=1500,
)
