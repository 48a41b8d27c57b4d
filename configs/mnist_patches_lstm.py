"""An LSTM over patches of MNIST's digits in black and white, 98 tokens of 256 symbols a digit.

python train.py configs/mnist_patches_lstm.py
python sample.py runs/mnist_patches_lstm --n 64
"""

from zoo import Optimizer, Run
from zoo.data.images import ImageTokens
from zoo.lstm_lm import LSTMLM

run = Run(
    family=LSTMLM(layers=2, width=320, embedding=128, context=98, dropout=0.1),
    data=ImageTokens(tokens="patches", patch=(2, 4)),
    optimizer=Optimizer(learning_rate=5e-3, warmup_steps=200, weight_decay=0.0, clip_norm=1.0, ema_decay=0.999),
    steps=8600,
    batch_size=64,
    log_every=50,
    eval_every=1000,
    save_every=500,
    sample_every=2000,
)
