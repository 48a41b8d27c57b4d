"""A classifier of MNIST's handwritten digits, whose features are used for FID, KID, precision and recall on MNIST.

python train.py configs/mnist_classifier.py

28 minutes on one CPU core shared with other programs, about 11 at its fastest rate; accuracy 99.54 % on MNIST's test
images. Its weights are embedded: see zoo/metrics/weights/README.md.
"""

from zoo import Optimizer, Run
from zoo.classifier import Classifier
from zoo.data.images import Images
from zoo.data.images.augment import Augment

run = Run(
    family=Classifier(width=32, features=128, dropout=0.25),
    data=Images(augment=Augment(rotation=12.0, shift=2, crop=0.85)),
    optimizer=Optimizer(learning_rate=2e-3, warmup_steps=200, final_fraction=0.0, weight_decay=0.05, ema_decay=0.999),
    steps=14000,
    batch_size=128,
    log_every=100,
    eval_every=1000,
    save_every=2000,
)
