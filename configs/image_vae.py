"""A variational autoencoder of MNIST's handwritten digits, binarised at random at every step.

python train.py configs/image_vae.py
python evaluate.py runs/image_vae --split test --iw-samples 200

37 minutes on one CPU core with other work beside it. On the 10,000 test images, binarised once: a bound of 88.09 nats
an image, and an importance-weighted negative log-likelihood with 200 codes of 84.44 nats; 27 of the 32 units are
active.
"""

from zoo import Optimizer, Run
from zoo.data.images import Images
from zoo.image_vae import ImageVAE

run = Run(
    family=ImageVAE(network="conv", width=32, layers=1, hidden=512, latent=32),
    data=Images(),
    optimizer=Optimizer(
        name="adam", learning_rate=2e-3, warmup_steps=500, final_fraction=0.0, clip_norm=200.0, ema_decay=0.999
    ),
    steps=40000,
    batch_size=128,
    log_every=100,
    eval_every=2000,
    save_every=2000,
    sample_every=2000,
)
