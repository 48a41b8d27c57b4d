"""A small XLNet: each token is predicted from those before it in a random order.

python train.py configs/permutation_lm.py

10 minutes on one CPU core. On the held-out plays, the accuracy of predicted tokens is 23.1 % top-1 and 37.8 % top-5 (a
unigram baseline: 9.4 and 21.3 %).

These figures predate the dev split of the data and have not been measured again yet.
"""

from zoo import Optimizer, Run
from zoo.data.text import SentencePairs
from zoo.masked_lm import MaskedLM

run = Run(
    family=MaskedLM(
        layers=4,
        heads=4,
        width=192,
        context=64,
        objective="permutation",
        next_sentence=False,
        mask_share=1 / 6,
        dropout=0.0,
    ),
    data=SentencePairs(tokenizer="bpe", vocabulary=4096),
    optimizer=Optimizer(learning_rate=4e-4, warmup_steps=300, weight_decay=0.01, clip_norm=1.0),
    steps=3000,
    batch_size=32,
    log_every=20,
    eval_every=500,
    score_every=1000,
    save_every=500,
    sample_every=1000,
)
