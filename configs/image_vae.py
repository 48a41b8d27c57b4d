"""A variational autoencoder of MNIST's handwritten digits, binarised at random at every step.

python train.py configs/image_vae.py
python evaluate.py runs/image_vae --iw-samples 200

28 minutes on two CPU cores. On the 10,000 test images, binarised once: a bound of 87.47 nats an image, and an
importance-weighted negative log-likelihood with 200 codes of 83.82 nats; 26 of the 32 units are active.

These figures predate the dev split of the data and have not been measured again yet.
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
    steps=80000,
    batch_size=128,
    log_every=100,
    eval_every=2000,
    save_every=2000,
    sample_every=2000,
)
