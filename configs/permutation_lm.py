"""XLNet's objective at a small size: tokens in a random order, each from those before it in that order.

python train.py configs/permutation_lm.py

10 minutes on one CPU core; of the held-out plays' tokens that are to be predicted 23.1 % are guessed at once and 37.8 %
in five (the most frequent tokens: 9.4 and 21.3 %).

These figures are from before the data had a dev split; they are yet to be measured again.
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
