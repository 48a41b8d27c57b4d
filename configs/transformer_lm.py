"""A character language model of Shakespeare's plays: nanoGPT's CPU setting, in the GPT-2 shape without biases.

python train.py configs/transformer_lm.py

0.8 minutes on two CPU cores; 1.904 nats and 2.747 bits a character on the held-out plays, Macbeth and Twelfth Night.
"""

from zoo import Optimizer, Run
from zoo.data.text import Text
from zoo.transformer_lm import TransformerLM

run = Run(
    family=TransformerLM(layers=4, heads=4, width=128, context=64, dropout=0.0),
    data=Text(),
    optimizer=Optimizer(
        learning_rate=1e-3, warmup_steps=100, final_fraction=0.1, beta2=0.99, weight_decay=0.1, clip_norm=1.0
    ),
    steps=2000,
    batch_size=12,
    log_every=10,
    eval_every=500,
    score_every=500,
    save_every=500,
    sample_every=500,
)
