"""A small XLNet: each token is predicted from those before it in a random order.

python train.py configs/permutation_lm.py

With `--steps 2000`, in 13 minutes on one CPU core with other work beside it, the accuracy of predicted tokens on the
test plays is 19.2 % top-1 and 31.0 % top-5 (a unigram baseline: 8.7 and 20.4 %).
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
