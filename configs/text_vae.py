"""A text VAE of WordNet's definitions.

python train.py configs/text_vae.py
python evaluate.py runs/text_vae --iw-samples 100
python sample.py runs/text_vae --between "a small bird" "a large building"

The same decoder as a plain language model, for comparison with the bound:
python train.py configs/text_vae.py --family.latent 0 --rundir runs/text_vae_lm

28 minutes on one CPU core. On held-out definitions the bound is 40.24 nats, of which the KL is 4.42 (mutual information
4.22, all ten units active); the language model's loss is 39.84. The importance-weighted bound with 100 codes is 39.74.

These figures predate the dev split of the data and have not been measured again yet.
"""

from zoo import Optimizer, Run
from zoo.data.text import Sentences
from zoo.text_vae import TextVAE, TextVAEScoring

run = Run(
    family=TextVAE(
        encoder="lstm", decoder="lstm", layers=1, width=256, context=20, latent=10, dropout=0.4,
        kl_warmup_steps=3000, free_bits=0.4,
    ),
    data=Sentences(),
    optimizer=Optimizer(name="adam", learning_rate=2e-3, warmup_steps=200, final_fraction=0.05, clip_norm=5.0),
    steps=12000,
    batch_size=64,
    log_every=50,
    eval_every=3000,
    save_every=3000,
    score_every=3000,
    scoring=TextVAEScoring(iw_samples=8),
    sample_every=3000,
)  # fmt: skip
