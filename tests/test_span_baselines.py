"""Baselines that answer questions from a context, against scikit-learn, transformers and plain loops."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity
from transformers import AutoModel

import tiny
import tunestack
from saved_baselines import assert_same_in_a_fresh_process
from task_samples import QUESTIONS, write_questions
from tunestack.baselines import span_fit
from tunestack.baselines.base import Fitted
from tunestack.baselines.features import Encoder
from tunestack.baselines.logistic import STRENGTHS, held_out
from tunestack.baselines.nearest_sentence import sentences
from tunestack.baselines.registry import find_baseline
from tunestack.baselines.span_probe import FittedSpanProbe
from tunestack.bases import Base
from tunestack.data.squad import ANSWERABLE
from tunestack.errors import UserError
from tunestack.export.folder import export_candidate
from tunestack.results import Results
from tunestack.tasks.question_answering import QuestionAnswering, QuestionAnsweringOptions
from tunestack.tasks.spans import Windows

OPTIONS = QuestionAnsweringOptions(stride=8, max_answer_tokens=6)
TASK = QuestionAnswering(ANSWERABLE, OPTIONS)
ALWAYS = QuestionAnswering((), OPTIONS)
TRAIN = QUESTIONS["train"]


def probe(base: Base, split: Any = TRAIN, **fields: Any) -> FittedSpanProbe:
    baseline = find_baseline("linear-probe", TASK)
    fitted = baseline.fit(TASK, split, baseline.make_options({"max_length": 40, **fields}), base)
    assert isinstance(fitted, FittedSpanProbe)
    return fitted


def nearest(split: Any, task: QuestionAnswering = ALWAYS, **fields: Any) -> Fitted:
    baseline = find_baseline("tfidf", task)
    return baseline.fit(task, split, baseline.make_options(fields), None)


def windows(base: Base, split: Any = TRAIN) -> Windows:
    encoded = TASK.encode(base, split, 40)
    assert len(encoded) > len(split["question"])  # there are long contexts among them
    return encoded


def rows_of(split: Any, rows: Any) -> dict[str, Any]:
    return {name: [column[row] for row in rows] for name, column in split.items()}


# ---------------------------------------------------------------- linear probe


def test_the_probe_is_the_minimum_of_what_is_documented(tmp_path: Path) -> None:
    """Row by row, without padding, in fp64, from transformers' own hidden states."""
    saved = tiny.save_base(tmp_path, "bert")
    base = tiny.open_base(str(saved))
    encoded, strength = windows(base), 0.05
    model = AutoModel.from_pretrained(saved, dtype="float32").eval()
    rows = []
    for ids in encoded.input_ids:
        with torch.no_grad():
            rows.append(model(torch.from_numpy(ids)[None]).last_hidden_state[0].double().numpy())
    tokens = np.concatenate(rows)
    mean, scale = tokens.mean(axis=0), tokens.std(axis=0)

    def objective(flat: Any) -> float:
        weight = flat.reshape(2, -1)
        total = (flat**2).sum() / 2
        for states, label in zip(rows, encoded.labels):
            logits = (states - mean) / scale @ weight.T
            for side in (0, 1):
                losses = np.log(np.exp(logits[:, side]).sum()) - logits[label[side], side]
                total += strength * losses / 2
        return float(total)

    ours = (probe(base, C=strength).coef * scale).ravel()
    best = scipy.optimize.minimize(objective, np.zeros(ours.size), method="BFGS", options={"gtol": 1e-6})
    assert np.abs(best.x).max() > 0.03
    np.testing.assert_allclose(ours, best.x, atol=1e-3)
    assert objective(ours) == pytest.approx(best.fun, rel=1e-6)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "deberta-v2", "llama", "gpt2"])
def test_logits_are_those_of_transformers_with_the_weight_in_its_head(kind: str, tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, kind)
    base.tokenizer.padding_side = "left"  # what some decoders prefer must not move positions
    fitted = probe(base, C=0.1)
    model: Any = base.load_model(TASK.auto_class, TASK.model_config(base)).model
    with torch.no_grad():
        model.qa_outputs.weight.copy_(torch.from_numpy(fitted.coef))
        model.qa_outputs.bias.zero_()
    split = QUESTIONS["validation"]
    encoded = windows(base, split)
    outputs = fitted.outputs(TASK, encoded)
    for row, length in enumerate(encoded.lengths):
        batch = {"input_ids": torch.from_numpy(encoded.input_ids[row])[None]}
        if encoded.token_type_ids is not None:
            batch["token_type_ids"] = torch.from_numpy(encoded.token_type_ids[row])[None]
        with torch.no_grad():
            expected = TASK.logits(model(**batch))[0]
        torch.testing.assert_close(outputs[row, :length], expected, rtol=1e-4, atol=1e-5)
        assert not outputs[row, length:].any()
    assert float(outputs.std()) > 0.01
    np.testing.assert_array_equal(fitted.answers(TASK, split), TASK.answer(encoded, outputs))
    ranked = fitted.n_best(TASK, split, 3)
    assert ranked == TASK.n_best(encoded, outputs, split, 3)
    told = TASK.told(split, fitted.answers(TASK, split))["prediction"]
    assert [own[0]["prediction"] for own in ranked] == told
    plain = 2 * base.config.get_text_config().hidden_size
    assert fitted.trainable_parameters == plain
    assert fitted.total_parameters == plain + model.base_model.num_parameters()


def test_the_penalty_is_the_best_on_contexts_held_out(tmp_path: Path) -> None:
    """Against all penalties, each from the beginning; a context that is asked about twice is on one side."""
    base = tiny.random_base(tmp_path, "bert")
    split = rows_of(TRAIN, [*range(26), *range(26)])
    encoded = windows(base, split)
    groups = [split["context"][example] for example in encoded.example]
    fitted, held = held_out(groups)
    assert not {groups[row] for row in fitted} & {groups[row] for row in held}
    assert sorted([*fitted, *held]) == list(range(len(encoded)))
    assert 0.1 * len(groups) < len(held) < 0.3 * len(groups)
    tokens = span_fit._tokens(TASK, Encoder(base, TASK.auto_class), encoded, np.concatenate([fitted, held]))
    span_fit._standardise(tokens.states)
    train, other = tokens.parts(len(fitted))
    zero = torch.zeros(16, 2, dtype=torch.float64)
    losses = [
        float(other.loss(TASK, span_fit.minimum(TASK, train, strength, zero, 1000))) for strength in STRENGTHS
    ]
    best = STRENGTHS[int(np.argmin(losses))]
    assert best < STRENGTHS[-1]
    ours = probe(base, split).coef
    np.testing.assert_allclose(ours, probe(base, split, C=best).coef, atol=2e-3)
    others = [probe(base, split, C=strength).coef for strength in STRENGTHS if strength != best]
    assert min(np.abs(ours - one).max() for one in others) > 5e-3


def test_one_context_leaves_the_penalty_as_it_is(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    split = rows_of(TRAIN, [7])
    np.testing.assert_array_equal(probe(base, split).coef, probe(base, split, C=1.0).coef)


def digits(count: int, seed: int) -> dict[str, list[Any]]:
    """The answer is the context's only digit."""
    random = np.random.default_rng(seed)
    contexts, starts = [], []
    for _ in range(count):
        letters = list(random.choice(list("abcdefg "), 20))
        place = int(random.integers(20))
        letters[place] = "7"
        contexts.append("x" + "".join(letters) + "x")
        starts.append([place + 1])
    texts = [["7"]] * count
    return {
        "question": ["Q?"] * count, "context": contexts, "answer_texts": texts, "answer_starts": starts,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_probe_learns_what_a_linear_layer_can(kind: str, tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, kind)
    baseline = find_baseline("linear-probe", ALWAYS)
    fitted = baseline.fit(ALWAYS, digits(80, 1), baseline.make_options({}), base)
    new = digits(30, 2)
    assert ALWAYS.scores(new, fitted.answers(ALWAYS, new))["exact_match"] > 0.7  # by chance under 0.05


def test_the_probe_is_the_same_each_time_and_stops_when_told(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    np.testing.assert_array_equal(probe(base).coef, probe(base).coef)
    assert not np.allclose(probe(base, C=1.0).coef, probe(base, C=1.0, max_iter=1).coef)


def test_of_many_windows_some_are_taken_at_even_distances(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    short = rows_of(TRAIN, range(26))
    options = {"C": 0.1, "max_length": 96}
    some = probe(base, short, max_windows=13, **options).coef
    alone = probe(base, rows_of(short, range(0, 26, 2)), **options).coef
    np.testing.assert_allclose(some, alone, atol=1e-6)
    assert np.abs(some - probe(base, short, **options).coef).max() > 1e-3
    assert find_baseline("linear-probe", TASK).make_options({}).model_dump()["max_windows"] == 4000


def test_a_probe_refuses_other_bases(tmp_path: Path) -> None:
    probe(tiny.random_base(tmp_path, "bert")).save(tmp_path / "saved")
    baseline = find_baseline("linear-probe", TASK)
    with pytest.raises(UserError, match="with 16 features, found"):
        baseline.load(tmp_path / "saved", tiny.random_base(tmp_path, "gpt2", n_embd=32, hidden_size=32))
    with pytest.raises(UserError, match="expected an encoder or a decoder, found an encoder-decoder"):
        baseline.check_base(tiny.random_base(tmp_path, "t5"))


# ---------------------------------------------------------------- nearest sentence


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ("One alone", ["One alone"]),
        ("  It ended. Then it began!  ", ["It ended.", "Then it began!"]),
        ("It is 3.5 m, i.e. much. 12 saw it? (Yes!) “No.” He left…", [
            "It is 3.5 m, i.e. much.", "12 saw it?", "(Yes!)", "“No.”", "He left…",
        ]),
        ("a title\n\n a line \r\nan end.", ["a title", "a line", "an end."]),
        ("It ended.\n  then more. \n and more", ["It ended.", "then more.", "and more"]),
        ("他用。mac！ok", ["他用。", "mac！", "ok"]),
        ("他来了。她走了！谁？", ["他来了。", "她走了！", "谁？"]),
        ("यह है। वह था।", ["यह है।", "वह था।"]),
        ("Dr. Who came.", ["Dr.", "Who came."]),  # abbreviations end a sentence
        (" \n ", []),
    ],
)  # fmt: skip
def test_sentences(context: str, expected: list[str]) -> None:
    found = sentences(context)
    assert [context[start:end] for start, end in found] == expected


PASSAGES = [
    "Ada wrote to Charles. Charles built an engine of brass.\nThe engine was never done! Ada died in 1852.",
    "Rivers flow to the sea. The sea is wide.",
    "One sentence about engines",
]
ASKED = {
    "question": ["Who built an engine?", "When did Ada die, in 1852?", "How wide is the sea?", "Engines?"],
    "context": [PASSAGES[0], PASSAGES[0], PASSAGES[1], PASSAGES[2]],
}


@pytest.mark.parametrize("fields", [{}, {"ngram_range": [1, 1], "sublinear_tf": False, "min_df": 2}])
def test_the_nearest_sentence_is_that_of_scikit_learn(fields: dict[str, Any]) -> None:
    given = nearest(ASKED, **fields).answers(ALWAYS, ASKED)
    options = {"ngram_range": (1, 2), "sublinear_tf": True, **fields}
    vectorizer = TfidfVectorizer(**{**options, "ngram_range": tuple(options["ngram_range"])})
    parts = [[text[start:end] for start, end in sentences(text)] for text in PASSAGES]
    vectorizer.fit([*itertools.chain(*parts), *ASKED["question"]])  # every context once
    for index, (question, context) in enumerate(zip(ASKED["question"], ASKED["context"])):
        own = parts[PASSAGES.index(context)]
        near = cosine_similarity(vectorizer.transform([question]), vectorizer.transform(own))[0]
        start, end, score, needed = given[index]
        assert context[int(start) : int(end)] == own[int(near.argmax())]
        assert score == pytest.approx(near.max(), abs=1e-12)
        assert needed == -np.inf
    assert len(set(ALWAYS.told(ASKED, given)["prediction"])) == 4
    assert (given[:, 2] > 0).all()


def test_equally_near_sentences_and_unknown_words_give_the_earliest() -> None:
    fitted = nearest(ASKED)
    split = {
        "question": ["Engine?", "Zebra?", "Sea?", "Sea?"],
        "context": [
            "Nothing. An engine. The sea. An engine.",
            "A b. C d.",
            "The sea. Is it? The sea.",
            " \n",
        ],
    }
    given = fitted.answers(ALWAYS, split)
    assert ALWAYS.told(split, given)["prediction"] == ["An engine.", "A b.", "The sea.", ""]
    assert given[1, 2] == 0
    assert given[3, 2] == -np.inf
    ranked = fitted.n_best(ALWAYS, split, 2)
    assert [[one["prediction"] for one in own] for own in ranked] == [
        ["An engine.", "An engine."], ["A b.", "C d."], ["The sea.", "The sea."], [],
    ]  # fmt: skip
    assert ranked[2][0]["score"] == ranked[2][1]["score"] > 0
    assert ranked[0][0]["start"] == 9
    assert fitted.answers(ALWAYS, {"question": ["Sea?"], "context": [""]})[0, 2] == -np.inf


def test_no_answer_ranks_by_its_threshold() -> None:
    known = QuestionAnswering(ANSWERABLE, QuestionAnsweringOptions(null_threshold=-0.2))
    fitted = nearest(ASKED, known)
    given = fitted.answers(known, ASKED)
    assert (given[:, 3] == 0.2).all()
    told = known.told(ASKED, given)["prediction"]
    assert [own[0]["prediction"] for own in fitted.n_best(known, ASKED, None)] == told
    assert [bool(text) for text in told] == (given[:, 2] >= 0.2).tolist()
    assert "" in [one["prediction"] for one in fitted.n_best(known, ASKED, None)[0]]


def test_no_term_left_is_told() -> None:
    with pytest.raises(UserError, match="Lower min_df"):
        nearest(ASKED, min_df=100)


# ---------------------------------------------------------------- saved, and in a comparison


@pytest.mark.parametrize("name", ["tfidf", "linear-probe"])
def test_a_saved_baseline_gives_the_same_in_a_fresh_process(name: str, tmp_path: Path) -> None:
    fitted = nearest(TRAIN, TASK) if name == "tfidf" else probe(tiny.random_base(tmp_path, "bert"))
    options = {"stride": 8, "max_answer_tokens": 6}
    # A score is the sum of four logits of up to 9 each, which largely cancel, in fp32.
    assert_same_in_a_fresh_process(fitted, TASK, TASK.texts(QUESTIONS["test"]), tmp_path, options, 1e-5)


def settings(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    given = dict(data)
    return {
        "source": given.pop("train"),
        "task": {"name": "question-answering", "stride": 8, "max_answer_tokens": 6},
        "bases": {"model": str(folder / "saved-bert"), "dtype": "float32", "device_map": "cpu"},
        "methods": [{"method": "lora", "r": 2}, "linear-probe", "tfidf"],
        "training": {"epochs": 1, "learning_rate": 1e-2, "max_length": 40},
        "seeds": 1,
        "output": folder / "run",
        "progress": False,
        **given,
    }


@pytest.fixture(scope="module", params=["v1.1", "v2"])
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """LoRA beside both baselines; questions without an answer, and costs, in v2 alone."""
    folder = tmp_path_factory.mktemp("compared")
    tiny.save_base(folder, "bert")
    data = write_questions(folder)["data"]
    if request.param == "v1.1":
        for path in data.values():
            lines = Path(path).read_text().splitlines(keepends=True)
            Path(path).write_text("".join(line for line in lines if json.loads(line)["answers"]["text"]))
    values = {**settings(folder, data), "measure_costs": request.param == "v2"}
    return folder, (values, tunestack.compare(values.pop("source"), **values), data)


def test_a_comparison_with_both(compared: tuple[Path, Any]) -> None:
    folder, (_, results, data) = compared
    run = folder / "run"
    unanswerable = bool(results.data.label_names)
    assert {one.name for one in results.candidates} == {"lora", "linear-probe", "tfidf"}
    assert results.verdict is not None
    page = (run / "report.html").read_text()
    for candidate in results.candidates:
        (seed,) = candidate.seeds
        assert seed.failure is None
        assert candidate.name in page
        assert candidate.hyperparameters.get("max_length", 40) == 40
        costs = candidate.costs
        for cost in (costs.train_seconds, costs.inference_examples_per_second, costs.adapter_bytes):
            assert cost is None if not unanswerable else cost > 0
        saved = json.loads((run / str(seed.adapter_path) / "tunestack.json").read_text())
        threshold = saved["task"]["options"].get("null_threshold")
        assert isinstance(threshold, float) == unanswerable
        predictor = tunestack.load(run / str(seed.adapter_path))
        rows = [json.loads(line) for line in Path(data["test"]).read_text().splitlines()]
        questions, contexts = ([row[name] for row in rows] for name in ("question", "context"))
        frame = pd.read_csv(run / seed.test.predictions_path, dtype=str, keep_default_na=False)
        predicted = predictor.predict(questions, contexts)
        assert predicted == frame["prediction"].tolist()
        assert [own[0]["prediction"] for own in predictor.n_best(questions, contexts, 2)] == predicted
        if unanswerable:
            assert {float(needed) for needed in frame["needed_score"]} == {-threshold}
        parameters = {"linear-probe": 2 * 16}.get(candidate.name)
        assert parameters is None or costs.trainable_parameters == (parameters if unanswerable else None)


def test_the_threshold_of_baselines_is_the_best_on_validation(compared: tuple[Path, Any]) -> None:
    folder, (_, results, _) = compared
    task = QuestionAnswering(results.data.label_names, OPTIONS)
    if not task.unanswerable:
        assert all(set(one.validation) == {"f1", "exact_match"} for one in results.candidates)
        return
    for candidate in results.candidates:
        scores = candidate.seeds[0].validation
        frame = pd.read_csv(folder / "run" / scores.predictions_path, dtype=str, keep_default_na=False)
        given = task.read(frame)
        reached = [
            task.scores(QUESTIONS["validation"], task.decided(given, {"null_threshold": -margin}))["f1"]
            for margin in [*(given[:, 2] - 1e-6), *(given[:, 2] + 1e-6)]
        ]
        assert scores.metrics["f1"] == pytest.approx(max(reached))
        assert min(reached) < max(reached)


def test_a_baseline_that_was_fitted_is_not_fitted_again(compared: tuple[Path, Any]) -> None:
    folder, (values, results, data) = compared
    files = sorted((folder / "run").rglob("baseline.safetensors"))
    assert len(files) == 2
    before = [path.stat().st_mtime_ns for path in files]
    again: Results = tunestack.compare(data["train"], **values)
    assert [path.stat().st_mtime_ns for path in files] == before
    assert [one.model_dump() for one in again.candidates] == [one.model_dump() for one in results.candidates]


def test_a_baseline_is_exported_whole(compared: tuple[Path, Any], command: Any, tmp_path: Path) -> None:
    folder, (_, results, data) = compared
    for name in ("linear-probe", "tfidf"):
        out = export_candidate(folder / "run", tmp_path / name, candidate=name)
        card = (out / "README.md").read_text()
        assert f"A baseline, `{name}`" in card
        assert "question-answering" in card
        done = command("predict", out, data["test"], "--out", tmp_path / f"{name}.csv")
        assert done.code == 0, done.err
        seed = next(one for one in results.candidates if one.name == name).seeds[0]
        told = pd.read_csv(tmp_path / f"{name}.csv", dtype=str, keep_default_na=False)["prediction"]
        stored = pd.read_csv(
            folder / "run" / seed.test.predictions_path, dtype=str, keep_default_na=False
        )["prediction"]  # fmt: skip
        assert told.tolist() == stored.tolist()
