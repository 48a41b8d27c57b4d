"""The token sampler: cached = full, padded = alone, knobs as defined, stop strings, streaming, bad requests."""

import json
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from test_interop import MODELS, REFERENCES, load_reference

from zoo.core.errors import UserError
from zoo.data.tokenizers import Bytes, Characters, Words
from zoo.sampling.tokens import decode as tokens
from zoo.sampling.tokens.continuation import ROWS, Continuation, continue_texts, make_knobs, sample_texts
from zoo.sampling.tokens.decode import write_tokens
from zoo.sampling.tokens.logits import Knobs, choose, penalize, truncate
from zoo.sampling.tokens.request import TokenRequest
from zoo.transformer_lm import Transformer, TransformerLM

END = 11
LENGTHS = (1, 3, 40, 7)
LETTERS = Characters("abcdefghijklmno")


def make_net(vocab: int = 12, context: int = 64, end: int = END, **settings) -> Transformer:
    """A small network with large weights, so that its texts vary."""
    family = TransformerLM(layers=2, heads=2, width=16, context=context, **settings)
    net = Transformer(family, vocab, end, nnx.Rngs(0))
    keys = nnx.Rngs(1)
    for _, leaf in nnx.iter_graph(net):
        if isinstance(leaf, nnx.Param):
            leaf[...] = leaf[...] + 0.4 * jax.random.normal(keys.params(), leaf.shape)
    return net


def letters_net(context: int = 64) -> Transformer:
    return make_net(LETTERS.vocab_size, context, LETTERS.end_of_text)


def prompts_of(lengths, vocab: int = 11) -> list[np.ndarray]:
    draw = np.random.default_rng(3)
    return [draw.integers(0, vocab, length, np.int32) for length in lengths]


def write(
    net, prompts, *, request=None, rows=None, key=0, tokens=20, context=64, chunk=32, never=None
) -> list[list[int]]:
    """New tokens of each row, cut after end-of-text."""
    new = []

    def accept(chunk):
        new.append(chunk)
        return np.zeros(len(prompts), bool)

    write_tokens(
        net,
        prompts,
        accept,
        knobs=make_knobs(request or TokenRequest(temperature=0.0), len(prompts)),
        key=jax.random.key(key),
        rows=rows,
        max_new_tokens=tokens,
        end_of_text=net.end_of_text,
        vocab_size=net.embedding.table.shape[0],
        never=never,
        context=context,
        chunk=chunk,
    )
    written = np.concatenate(new, axis=1).tolist()
    ends = [row.index(net.end_of_text) + 1 if net.end_of_text in row else tokens for row in written]
    return [row[:end] for row, end in zip(written, ends, strict=True)]


def greedy_by_full_forward(net, prompt, tokens, context) -> list[int]:
    """The definition: the likeliest token after the window, which falls back to half the context when it is full."""
    forward = jax.jit(net.__call__)
    window, new = list(prompt), []
    for _ in range(tokens):
        if len(window) > context:
            window = window[-(context // 2) :]
        padded = np.zeros((1, context), np.int32)
        padded[0, : len(window)] = window
        token = int(forward(jnp.asarray(padded))[0, len(window) - 1].argmax())
        window.append(token)
        new.append(token)
        if token == net.end_of_text:
            break
    return new


@contextmanager
def no_compilation():
    """A block in which compiling anything is an error."""
    compiled = []

    def heard(name, *_args, **_kwargs):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert not compiled


# ------------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("model", MODELS)
def test_greedy_texts_are_transformers(model, case):
    reference = load_reference(REFERENCES / model)
    expected = reference.lists["greedy"][case]
    reference.net.end_of_text, kept = expected["end"], reference.net.end_of_text
    prompts = [np.array(prompt) for prompt in expected["prompts"]]
    found = write(reference.net, prompts, tokens=expected["new_tokens"], context=reference.family.context)
    reference.net.end_of_text = kept
    assert found == expected["found"]


@pytest.mark.parametrize("context", [64, 16, 5])
def test_cached_is_full_also_past_the_context(context):
    net = make_net(context=context, end=-1)
    for prompt in prompts_of([1, context - 1, context]):
        assert write(net, [prompt], tokens=70, context=context) == [greedy_by_full_forward(net, prompt, 70, context)]


@pytest.mark.parametrize("settings", [{}, {"positions": "rope", "kv_heads": 1, "norm": "rmsnorm", "mlp": "swiglu"}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_of_prompts_is_each_alone(temperature, settings):
    net = make_net(context=48, **settings)
    request = TokenRequest(temperature=temperature, top_p=0.9, repetition_penalty=1.1)
    prompts = prompts_of(LENGTHS)
    together = write(net, prompts, request=request, tokens=60, context=48)
    for row, prompt in enumerate(prompts):
        assert write(net, [prompt], request=request, rows=[row], tokens=60, context=48) == [together[row]]
    assert len({tuple(row) for row in together}) == len(prompts)


def test_chunks_do_not_matter():
    net, request = make_net(end=-1), TokenRequest()
    texts = [write(net, prompts_of([3, 5]), request=request, tokens=41, chunk=chunk) for chunk in (1, 8, 32)]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_token_that_is_never_drawn(temperature):
    net, prompts, request = make_net(end=-1), prompts_of(LENGTHS), TokenRequest(temperature=temperature)
    freely = write(net, prompts, request=request)
    common = Counter(token for row in freely for token in row).most_common(1)[0][0]
    banned = write(net, prompts, request=request, never=int(common))
    assert not any(common in row for row in banned)
    for row, without in zip(freely, banned, strict=True):
        free = row.index(common) if common in row else len(row)
        assert without[:free] == row[:free]


def test_the_likeliest_of_one_is_greedy():
    net, prompts = make_net(), prompts_of(LENGTHS)
    greedy = write(net, prompts)
    assert write(net, prompts, request=TokenRequest(top_k=1, temperature=3.0)) == greedy
    assert write(net, prompts, request=TokenRequest(top_p=1e-6)) == greedy
    assert write(net, prompts, request=TokenRequest(min_p=1.0)) == greedy
    assert write(net, prompts, request=TokenRequest()) != greedy


def test_other_prompts_and_knobs_compile_nothing():
    net, (short, long) = make_net(end=-1), prompts_of([3, 40])
    write(net, [short], tokens=40)
    asked = TokenRequest(temperature=0.5, top_k=3, top_p=0.9, min_p=0.01, repetition_penalty=1.2)
    with no_compilation():
        write(net, [long], request=asked, key=1, tokens=57, chunk=8)


# -------------------------------------------------------------------------------------------- texts


def sample(key=0, context=64, stream=None, **request):
    asked = TokenRequest(**({"max_new_tokens": 50} | request))
    texts = sample_texts(letters_net(context), LETTERS, asked, jax.random.key(key), context=context, stream=stream)
    return [text.text for text in texts]


def test_a_sample_does_not_depend_on_the_others():
    three, one = sample(n=3), sample(n=1)
    assert three[:1] == one
    assert len(set(three)) == 3
    assert sample(n=3, key=1) != three
    assert sample(n=34)[:3] == three


def test_texts_start_with_the_prompt_and_outgrow_the_context():
    (text,) = sample(prompt="abc", max_new_tokens=300, context=16, temperature=0.0)
    assert text.startswith("abc")
    ids = greedy_by_full_forward(letters_net(16), LETTERS.encode("abc"), 300, 16)
    assert text == "abc" + LETTERS.decode(ids)


def test_words_that_a_tokenizer_lacks_are_not_written():
    words = Words((" a", " b", " c", " d"))
    net = make_net(vocab=words.vocab_size, end=words.end_of_text)
    texts = sample_texts(net, words, TokenRequest(n=8, max_new_tokens=20), jax.random.key(0), context=64)
    assert {word for text in texts for word in text.text.split()} == {"a", "b", "c", "d"}


def test_an_empty_prompt_begins_a_document():
    net = letters_net()
    ids = greedy_by_full_forward(net, [LETTERS.end_of_text], 50, 64)
    assert sample(temperature=0.0) == [LETTERS.decode(ids)]


def test_streamed_pieces_are_the_text():
    pieces = []
    (text,) = sample(prompt="ab", stream=pieces.append, stop=("zz", "lm"))
    assert "".join(pieces) == text
    assert len(pieces) > 2


@pytest.mark.parametrize("length", [1, 2, 5])
def test_stop_strings_cut_the_text(length):
    asked = {"prompt": "a", "max_new_tokens": 60}
    key, whole = next((key, text) for key in range(50) for text in sample(key, **asked) if len(text) > 55)
    for at in (3, 8, 9, 10, 31, 32, 33, 45):
        stop, pieces = whole[at : at + length], []
        (text,) = sample(key, stop=("nonsense", stop), stream=pieces.append, **asked)
        assert text == whole[: whole.index(stop, 1)]
        assert "".join(pieces) == text


def test_streaming_holds_back_broken_characters_and_beginnings_of_stop_strings():
    tokenizer = Bytes()
    continuation = Continuation(tokenizer, ("END", "ENÉ"))
    given = [continuation.add([byte]) for byte in "aé ENENEN é".encode()]
    assert "".join(given) + continuation.finish() == "aé ENENEN é"
    assert given[1:3] == ["", "é"]
    assert given[4:6] == ["", ""]
    cut = Continuation(tokenizer, ("END", "ENÉ"))
    assert "".join(cut.add([byte]) for byte in "xENENÉy".encode()) == "xEN"
    assert cut.ended
    assert cut.finish() == ""
    first = Continuation(tokenizer, ("d", "cd"))  # both end with the same byte
    assert "".join(first.add([byte]) for byte in b"abcde") == "ab"
    broken = Continuation(tokenizer, ())
    assert broken.add("é".encode()[:1]) == ""
    assert broken.add([tokenizer.end_of_text, 65]) == "\ufffd"


def test_a_single_text_is_streamed_and_several_are_not():
    heard: list[str] = []
    for n, streamed in ((1, True), (2, False)):
        heard.clear()
        request = TokenRequest(prompt="ab", n=n, max_new_tokens=12)
        texts = sample_texts(letters_net(), LETTERS, request, jax.random.key(2), context=64, stream=heard.append)
        assert "".join(heard) == (texts[0].text if streamed else "")


def test_more_beams_than_rows_at_once():
    request = TokenRequest(prompt="ab", n=2, num_beams=ROWS + 1, max_new_tokens=3)
    texts = sample_texts(letters_net(), LETTERS, request, jax.random.key(2), context=64)
    assert len({text.text for text in texts}) == 2


@pytest.mark.parametrize(("context", "left"), [(1, [8]), (2, [8]), (3, [8]), (4, [7, 8]), (9, list(range(9)))])
def test_a_window_that_outgrew_the_context_keeps_its_last_half(context, left):
    assert tokens._last(np.arange(9), context).tolist() == left


def test_prompts_of_several_lengths_continue_as_alone():
    net, request = letters_net(), TokenRequest(max_new_tokens=30)
    prompts = [LETTERS.encode(text) for text in ("a", "abcdefgh", "no")]
    together = continue_texts(net, LETTERS, prompts, request, jax.random.key(5), context=64)
    for row, prompt in enumerate(prompts):
        alone = continue_texts(net, LETTERS, [prompt], request, jax.random.key(5), rows=[row], context=64)
        assert alone == [together[row]]


def test_beam_search_gives_the_best_texts_first():
    texts = sample_texts(
        letters_net(),
        LETTERS,
        TokenRequest(prompt="ab", n=2, num_beams=3, max_new_tokens=10),
        jax.random.key(0),
        context=64,
    )
    assert len(texts) == 2
    assert texts[0].scores["score"] > texts[1].scores["score"]
    assert all(text.text.startswith("ab") for text in texts)


# -------------------------------------------------------------------------------------------- knobs


def by_definition(logits, seen, repetition_penalty=1.0, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """One row of logits through all knobs, written token by token."""
    logits = logits.astype(np.float64)
    for token in seen:
        logits[token] *= repetition_penalty if logits[token] < 0 else 1 / repetition_penalty
    logits /= temperature
    order = np.argsort(-logits)
    if top_k:
        logits[order[top_k:]] = -np.inf
    probability = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    before = np.cumsum(probability[order]) - probability[order]
    logits[order[before >= top_p]] = -np.inf
    logits[probability < min_p * probability.max()] = -np.inf
    return logits


KNOBS = [
    {},
    {"repetition_penalty": 1.4},
    {"temperature": 0.5},
    {"top_k": 4},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"repetition_penalty": 0.7, "temperature": 1.5, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
    {"top_k": 1000, "top_p": 0.99},
]


def knob_rows(rows) -> Knobs:
    full = [TokenRequest(**row) for row in rows]
    stacked = [make_knobs(request, 1) for request in full]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *stacked)


def process(logits, seen, knobs):
    logits = penalize(logits, seen, knobs.repetition_penalty) / knobs.temperature[:, None]
    return truncate(logits, knobs.top_k, knobs.top_p, knobs.min_p)


def test_knobs_are_what_they_are_defined_to_be():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(len(KNOBS), 50)).astype(np.float32) * 2
    seen = draw.random(logits.shape) < 0.3
    found = process(jnp.asarray(logits), jnp.asarray(seen), knob_rows(KNOBS))
    for row, knobs in enumerate(KNOBS):
        expected = by_definition(logits[row], np.flatnonzero(seen[row]), **knobs)
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, err_msg=str(knobs))


@pytest.mark.parametrize(("penalties", "chosen"), [((1.0, 1.0), (0, 0)), ((2.0, 2.0), (1, 1)), ((1.0, 2.0), (0, 1))])
def test_the_choice_is_of_penalised_tokens(penalties, chosen):
    """By hand: a logit of 3 that was seen counts 1.5 with penalty 2, below the 2 of another token."""
    knobs = knob_rows([{"temperature": 0.0, "repetition_penalty": penalty} for penalty in penalties])
    logits, seen = jnp.array([[3.0, 2.0, -1.0]] * 2), jnp.array([[True, False, False]] * 2)
    assert choose(logits, seen, knobs, jax.random.split(jax.random.key(0), 2)).tolist() == list(chosen)


def test_knobs_are_transformers():
    cases = json.loads((REFERENCES / "processors.json").read_text())["cases"]
    arrays = load_file(REFERENCES / "processors.safetensors")
    for i, case in enumerate(cases):
        logits, tokens = arrays["logits"], arrays["seen"]
        seen = np.zeros(logits.shape, bool)
        np.put_along_axis(seen, tokens, True, axis=1)
        found = process(jnp.asarray(logits), jnp.asarray(seen), knob_rows([case] * len(logits)))
        np.testing.assert_allclose(found, arrays[f"processed.{i}"], rtol=1e-5, atol=1e-5, err_msg=str(case))


def test_draws_follow_the_distribution():
    logits = jnp.tile(jnp.array([[1.0, 0.0, -1.0, 2.0]]), (4000, 1))
    keys = jax.random.split(jax.random.key(0), 4000)
    knobs = knob_rows([{"temperature": 0.8, "top_k": 3}] * 4000)
    counts = np.bincount(choose(logits, jnp.zeros(logits.shape, bool), knobs, keys), minlength=4) / 4000
    expected = np.exp(np.array([1.0, 0.0, -np.inf, 2.0]) / 0.8)
    np.testing.assert_allclose(counts, expected / expected.sum(), atol=0.03)


def test_rows_have_their_own_knobs():
    logits = jnp.tile(jnp.array([[0.1, 0.0, 0.05]]), (2, 1))
    knobs = knob_rows([{"temperature": 0.0}, {"temperature": 5.0}])
    many = [
        choose(logits, jnp.zeros((2, 3), bool), knobs, jax.random.split(jax.random.key(i), 2)).tolist()
        for i in range(30)
    ]
    assert {greedy for greedy, _ in many} == {0}
    assert {drawn for _, drawn in many} == {0, 1, 2}


# -------------------------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("max_new_tokens", 0),
        ("temperature", -0.5),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 2.0),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("stop", ("",)),
        ("num_beams", 0),
        ("length_penalty", float("inf")),
    ],
)
def test_bad_values_are_named(field, value):
    with pytest.raises(UserError, match=field) as error:
        TokenRequest(**{field: value})
    assert str(value) in str(error.value)


def test_beam_search_refuses_what_it_would_ignore():
    beams = TokenRequest(num_beams=3)
    for field, value in (
        ("temperature", 0.5),
        ("top_k", 4),
        ("top_p", 0.5),
        ("min_p", 0.1),
        ("repetition_penalty", 2.0),
    ):
        with pytest.raises(UserError, match=field):
            replace(beams, **{field: value})
    with pytest.raises(UserError, match="num_beams"):
        replace(beams, n=4)
    with pytest.raises(UserError, match="max_new_tokens is 65"):
        sample(num_beams=2, max_new_tokens=65)


def test_prompts_that_do_not_fit():
    with pytest.raises(UserError, match="65 tokens"):
        sample(prompt="a" * 65)
    with pytest.raises(UserError, match="X"):
        sample(prompt="aX")
