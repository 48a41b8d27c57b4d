"""The token sampler's texts: cached = full, padded = alone, stop strings, streaming, beams."""

from collections import Counter

import jax
import numpy as np
import pytest
from compilation import no_compilation
from paths import REFERENCES
from token_cases import LENGTHS, LETTERS, greedy_by_full_forward, letters_net, make_net, prompts_of, sample, write
from transformers_cases import MODELS, load_reference

from zoo.data.tokenizers import Bytes, Words
from zoo.sampling.tokens import decode as tokens
from zoo.sampling.tokens.continuation import AT_ONCE, Continuation, continue_texts, sample_texts
from zoo.sampling.tokens.request import TokenRequest

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
    request = TokenRequest(prompt="ab", n=2, num_beams=AT_ONCE + 1, max_new_tokens=3)
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
