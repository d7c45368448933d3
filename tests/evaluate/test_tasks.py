"""Every task on a small file in its published form: what is read, asked, judged and refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from pangu_lab.errors import InputError
from pangu_lab.evaluate import make_task
from pangu_lab.evaluate.scoring import make_score
from pangu_lab.evaluate.tasks import TASKS
from pangu_lab.evaluate.tasks.base import sampled_options
from pangu_lab.evaluate.tasks.c3 import overlap, reference_pair
from pangu_lab.evaluate.tasks.cft import join_words
from pangu_lab.evaluate.tasks.cmrc2018 import answer_f1, longest_common_run, units
from tests.evaluate.published import ANSWERS, ASKED, c3_documents, write_all, write_c3, write_json, write_lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("published"))


def load(name, folder, **options):
    task = make_task(name, **options)
    return task, task.read(task.find(folder))


def judged(task, question, *means):
    return task.judge(question, [make_score([mean], False) for mean in means])


# ------------------------------------------------------------------------------------------ what each task asks


@pytest.mark.parametrize("name", ASKED)
def test_the_first_question_is_asked_with_the_papers_template(name, folder):
    task, questions = load(name, folder)
    assert task.pairs(questions[0]) == ASKED[name]


@pytest.mark.parametrize("name", ANSWERS)
def test_the_right_answers_are_those_of_the_file(name, folder):
    task, questions = load(name, folder)
    assert [question.options[question.answer] for question in questions] == ANSWERS[name]
    assert len({question.id for question in questions}) == len(questions) == task.count(questions)


@pytest.mark.parametrize("name", sorted(set(ANSWERS) - {"cft", "pd", "wplc"}))
def test_the_most_probable_option_is_chosen_and_the_first_wins_a_tie(name, folder):
    task, questions = load(name, folder)
    for question in questions:
        means = [-1.0] * len(question.options)
        assert judged(task, question, *means).right == float(question.answer == 0)
        means[question.answer] = -0.5
        outcome = judged(task, question, *means)
        assert (outcome.right, outcome.n, outcome.details["right"]) == (1.0, 1, True)


def test_every_task_has_a_file_here_and_says_what_it_reads(folder):
    for name, kind in TASKS.items():
        task, questions = load(name, folder)
        assert questions and kind.file_format and kind.title
        assert set(task.baselines(questions)) <= {"random", "most frequent", "longest", "overlap"}


# ---------------------------------------------------------------------------------------------------- one by one


def test_tnews_offers_three_sampled_labels_or_all(folder):
    task, questions = load("tnews", folder)
    again = load("tnews", folder)[1]
    assert [len(question.options) for question in questions] == [4, 4]
    assert [q.options for q in questions] == [q.options for q in again]
    assert "most frequent" not in task.baselines(questions)
    task, questions = load("tnews", folder, negatives=0)
    assert [len(question.options) for question in questions] == [15, 15]
    assert task.baselines(questions) == {"random": pytest.approx(1 / 15), "most frequent": 0.5}


def test_sampled_labels_depend_on_the_question_and_the_seed_alone():
    labels = [str(i) for i in range(30)]
    one = sampled_options("4", labels, 3, "text", 1)
    assert one == sampled_options("4", labels, 3, "text", 1) and len(one) == 4 and "4" in one
    others = [sampled_options("4", labels, 3, *key) for key in (("other text", 1), ("text", 2))]
    assert one not in others


def test_iflytek_takes_the_names_of_all_labels_from_the_file_beside_the_data(folder, tmp_path):
    assert len(load("iflytek", folder, negatives=0)[1][0].options) == 6
    alone = write_lines(
        tmp_path / "dev.json",
        [
            {"label": "1", "label_des": "地图", "sentence": "找路"},
            {"label": "2", "label_des": "菜谱", "sentence": "做菜"},
        ],
    )
    task = make_task("iflytek")
    assert task.read([alone])[0].options == ("地图", "菜谱")


def test_inference_pairs_without_agreement_are_left_out(folder):
    assert [question.id for question in load("ocnli", folder)[1]] == ["0", "1", "2"]


def test_cluewsc_answers_rows_about_one_pronoun_together_and_judges_each(folder):
    task, [both, single] = load("cluewsc", folder)
    assert both.labels == (True, False) and task.count([both, single]) == 3
    assert judged(task, both, -1.0, -2.0).right == 2 and judged(task, both, -2.0, -1.0).right == 0
    assert single.options == ("水缸", "它")  # one noun only: against the text as it was
    assert judged(task, single, -1.0, -2.0).right == 1 and judged(task, single, -2.0, -1.0).right == 0
    outcomes = [judged(task, both, -2.0, -1.0), judged(task, single, -1.0, -2.0)]
    assert task.measure(outcomes).value == pytest.approx(1 / 3)
    assert task.baselines([both, single]) == {"random": 0.5, "most frequent": pytest.approx(2 / 3)}


def test_cluewsc_scores_the_whole_text_when_nothing_follows_the_pronoun(tmp_path):
    row = {
        "target": {"span1_text": "猫", "span1_index": 0, "span2_text": "它", "span2_index": 4},
        "idx": 0,
        "label": "true",
        "text": "猫饿了喂它",
    }
    task = make_task("cluewsc")
    assert task.pairs(task.read([write_lines(tmp_path / "dev.json", [row])])[0]) == [
        ("", "猫饿了喂猫"),
        ("", "猫饿了喂它"),
    ]


def test_chid_reads_the_three_published_forms(tmp_path):
    task = make_task("chid")
    clue = write_lines(
        tmp_path / "dev.json",
        [{"content": ["走#idiom000001#来#idiom000002#。"], "groupID": 1, "candidates": ["甲乙丙丁", "子丑寅卯"]}],
    )
    write_json(tmp_path / "dev_answer.json", {"#idiom000001#": 1, "#idiom000002#": 0})
    original = write_lines(
        tmp_path / "original.json",
        [
            {
                "content": "走#idiom#来#idiom#。",
                "realCount": 2,
                "groundTruth": ["子丑寅卯", "甲乙丙丁"],
                "candidates": [["甲乙丙丁", "子丑寅卯"], ["甲乙丙丁", "天地玄黄"]],
            }
        ],
    )
    for path in (clue, original):
        first, second = task.read([path])
        assert first.options[first.answer] == "子丑寅卯" and second.options[second.answer] == "甲乙丙丁"
        assert task.pairs(first)[0] == ("", "走甲乙丙丁来……。") and task.pairs(second)[0] == ("", "走……来甲乙丙丁。")
    assert task.find(tmp_path, "dev") == [clue]  # the answers are no data file


def test_pd_and_cft_words_are_joined_as_written_text():
    assert (
        join_words("据 《 纽约 时报 》 2013 年 报道 ， New York Times 说 38.3% 。")
        == "据《纽约时报》2013年报道，New York Times说38.3%。"
    )


def test_cloze_words_count_as_right_when_greedy_writing_would_give_them(folder):
    task, questions = load("wplc", folder)
    outcomes = [
        task.judge(questions[0], [make_score([-1.0, -3.0], True)]),
        task.judge(questions[1], [make_score([-2.0], False)]),
    ]
    measure = task.measure(outcomes)
    assert measure.value == pytest.approx(2.718281828**2) and measure.more == {"accuracy": 0.5}
    assert measure.interval[0] <= measure.value <= measure.interval[1]
    assert load("cft", folder)[0].measure(outcomes).value == 0.5


def test_cmrc_answers_are_judged_as_the_data_set_does(folder):
    task, questions = load("cmrc2018", folder)
    assert task.prompt(questions[1]).endswith("。\n问：谁守灯塔？\n答：") and task.prompt(questions[1]).startswith(
        "阅读文章：北港"
    )
    outcomes = [task.judge(questions[0], " 三十二米。\n问：还有呢"), task.judge(questions[1], "守塔人老秦")]
    assert [outcome.right for outcome in outcomes] == [1.0, 0.0]
    assert outcomes[1].details["f1"] == pytest.approx(2 * 2 / (5 + 2))
    measure = task.measure(outcomes)
    assert measure.value == 0.5 and measure.more["f1"] == pytest.approx((1 + 4 / 7) / 2, abs=1e-6)
    assert judge_empty(task, questions[1]).right == 0


def judge_empty(task, question):
    return task.judge(question, "")


def test_units_of_an_answer_are_characters_and_words():
    assert units("《ABC》2013年，好吗？") == ["abc", "2013", "年", "好", "吗"]
    assert longest_common_run("abcd", "xbcy") == 2 and longest_common_run("", "a") == 0
    assert answer_f1("一九一一年", "一九一一") == pytest.approx(8 / 9) and answer_f1("无", "有") == 0


# ------------------------------------------------------------------------------------------------------------ c3


def test_c3_reads_both_halves_or_one_of_the_part_asked_for(tmp_path):
    write_c3(tmp_path)
    task = make_task("c3")
    names = [path.name for path in task.find(tmp_path)]
    assert names == ["c3-d-dev.json", "c3-m-dev.json"]
    assert len(task.read(task.find(tmp_path))) == 18 and len(task.read(task.find(tmp_path, half="m"))) == 6
    assert [path.name for path in task.find(tmp_path, "test")] == ["c3-d-test.json"]
    with pytest.raises(InputError, match="no 'train' part of C3 there \\(there is c3-d-dev.json"):
        task.find(tmp_path, "train")
    with pytest.raises(InputError, match="half='x' must be 'd' .* or 'm'"):
        task.find(tmp_path, half="x")


def test_c3_baselines_on_questions_counted_by_hand(tmp_path):
    task = make_task("c3")
    questions = task.read([write_json(tmp_path / "c3-d-dev.json", c3_documents(2))])
    found = task.baselines(questions)
    assert found["random"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    # longest: 学游泳 3, 修自行车 4 ← right; 奶奶 first of a tie ← right; 写毛笔字 4, 包饺子 3; 奶奶 again
    assert found["longest"] == pytest.approx(3 / 4)
    assert found["overlap"] == 1.0 and overlap("去医院", "我去学院") == pytest.approx(2 / 3) and overlap("", "x") == 0


def test_c3_baselines_are_those_known_of_the_real_file(data_folder):
    task = make_task("c3")
    questions = task.read(task.find(data_folder / "c3", half="d"))
    found = task.baselines(questions)
    assert len(questions) == 1825
    assert [round(found[name] * 1825) for name in ("overlap", "longest")] == [742, 506]
    assert [round(100 * found[name], 2) for name in ("overlap", "longest", "random")] == [40.66, 27.73, 26.43]


def test_c3_corrected_scores_the_passage_and_reference_repeats_the_shifted_mask(scorer):
    task, reference = make_task("c3"), make_task("c3", scoring="reference")
    question = dataclasses.replace(make_task("c3")._document("f", 0, c3_documents(1)[0])[0])
    [pair, *_] = pairs = task.pairs(question)
    encoded = scorer.encode(*pair, task.cut)
    shifted = reference_pair(scorer, *pair)
    prompt = len(scorer.tokenizer.encode(pair[0]))
    assert shifted.ids == (*scorer.tokenizer.encode("".join(pair)), scorer.tokenizer.pad_id)
    assert shifted.start == prompt + 1  # the passage's first token is not scored, the padding is
    [right, wrong] = scorer.score_tokens([encoded, shifted])
    score = reference.score(scorer, pairs)[0]
    assert score.mean == pytest.approx(wrong.logprob / scorer.window)
    assert task.score(scorer, pairs)[0].mean == pytest.approx(right.mean)
    same = right.token_logprobs[-len(wrong.token_logprobs) + 1 :]
    assert wrong.token_logprobs[:-1] == pytest.approx(same, abs=1e-4)


def test_c3_keeps_question_and_answer_when_the_passage_is_too_long(scorer):
    task = make_task("c3")
    document = c3_documents(1)[0]
    document[0] = ["很久以前有一座山。" * 60]
    question = task._document("f", 0, document)[0]
    scores = task.score(scorer, task.pairs(question))
    assert all(score.cut > 0 for score in scores) and len({round(score.mean, 6) for score in scores}) == 3
    assert task.judge(question, scores).details["cut"] > 0


# ----------------------------------------------------------------------------------------------------- templates


def test_a_template_of_ones_own_is_used_and_its_mistakes_are_named(folder):
    task, questions = load("ocnli", folder, template="前提：{sentence1}\n结论：{sentence2}\n{|}{option}")
    assert task.pairs(questions[0])[0] == ("前提：院子里的灯亮着\n结论：院子里有灯\n", "对")
    with pytest.raises(InputError, match=r"of ocnli: unknown field \{sentence3\} \(did you mean 'sentence"):
        make_task("ocnli", template="{sentence3}{option}")
    with pytest.raises(InputError, match=r"\{\|\} may stand in it once"):
        make_task("ocnli", template="{|}{option}{|}")
    with pytest.raises(InputError, match="reference's scoring needs a template with"):
        make_task("c3", scoring="reference", template="{question}{option}{passage}")


def test_braces_in_the_data_are_text(tmp_path):
    row = {"sentence1": "{option} {|}", "sentence2": "{x}", "label": "entailment", "id": 0}
    task = make_task("ocnli")
    [question] = task.read([write_lines(tmp_path / "dev.json", [row])])
    assert task.pairs(question)[0] == ("", "{option} {|}？对，{x}")


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("ocnli", '{"sentence1": "a"}\n', "row 1 has no 'sentence2'"),
        ("ocnli", '{"sentence1": "a", "sentence2": "b", "id": 1}\n', "has no 'label' .*without answers cannot be"),
        ("ocnli", '{"sentence1": "a", "sentence2": "b", "label": "yes"}\n', "has the label 'yes'; known are"),
        ("ocnli", '{"sentence1": "a", "sentence2": "b", "label": "neutral"}\n{oops\n', "line 2 is not JSON"),
        ("ocnli", "", "no questions in it; ocnli reads one JSON object a line"),
        ("ocnli", "[1, 2]", "row 1 has no 'sentence1'"),
        ("c3", "[[1, 2]]", "document 0: 'passage' must be a text or a list, and a number stands there"),
        ("c3", '[["a"]]', "document 0: 'passage' must be|not C3's format, which is JSON: a list of"),
        (
            "c3",
            '[[["a"], [{"question": null, "choice": ["x"], "answer": "x"}], "1"]]',
            "question 0: 'question' must be a text, and null",
        ),
        (
            "ocnli",
            '{"sentence1": null, "sentence2": "b", "label": "neutral"}',
            "row 1: 'sentence1' must be a text, and null stands there",
        ),
        (
            "ocnli",
            '{"sentence1": "a", "sentence2": 5, "label": "neutral"}',
            "'sentence2' must be a text, and a number stands there",
        ),
        ("ocnli", "[" * 100000, "line 1 is not JSON"),
        (
            "csl",
            '{"abst": "a", "keyword": ["b", 3], "label": 1}',
            "'keyword' must be a text or a list, and a number stands there",
        ),
        ("tnews", '{"sentence": ["a"], "label": "100"}', "'sentence' must be a text, and a list stands there"),
        (
            "chid",
            '{"content": "a#idiom#", "candidates": [null], "answer": 0}',
            "'candidates' must be a text or a list, and null",
        ),
        (
            "cmrc2018",
            '{"data": [{"paragraphs": [{"context": 1, "qas": [{"id": "q7"}]}]}]}',
            "question q7: 'context' must be a text",
        ),
        ("c3", "{", "line 1 is not JSON"),
        ("c3", '[[["a"], [{"question": "q", "choice": ["x"], "answer": "y"}], "1"]]', "answer is none of the choices"),
        ("chid", '{"content": "a#idiom#", "candidates": ["b"], "answer": 5}', "the answer is none of the candidates"),
        ("chid", '{"content": "a#idiom1#", "candidates": ["b"]}', "row 1 has no answer, and there is none for"),
        (
            "cluewsc",
            '{"text": "a", "target": {"span2_index": 3}, "label": "true"}',
            "row 1: 'target' has no 'span1_text'",
        ),
        (
            "cluewsc",
            '{"text": "a", "target": {"span1_text": "a", "span2_text": "b", "span2_index": 3}, "label": "true"}',
            "row 1: no pronoun",
        ),
        ("cmrc2018", '{"data": [{"paragraphs": [{}]}]}', "not of this format: JSON: data"),
        ("cft", "1 ||| 没有 问题\n", "the last document has no query"),
        ("cft", "hello\n", "line 1 is not of this form"),
        ("cft", "1 ||| 没有 空 ||| 答\n", "line 1: the query needs XXXXX"),
        ("wplc", '{"masked_text": "a<mask>"}', "has no 'correct_word'"),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_line(name, content, message, tmp_path):
    path = tmp_path / "dev.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        make_task(name).read([path])
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_line_separators_in_a_text_and_byte_order_marks_are_read(tmp_path):
    row = {"sentence1": "甲\u2028乙", "sentence2": "丙\x85丁", "label": "neutral"}
    path = tmp_path / "dev.json"
    path.write_text("\ufeff" + json.dumps(row, ensure_ascii=False) + "\r\n", encoding="utf-8", newline="")
    [question] = make_task("ocnli").read([path])
    assert question.fields == {"sentence1": "甲\u2028乙", "sentence2": "丙\x85丁"}
    marked = tmp_path / "cmrc.json"
    articles = [
        {"paragraphs": [{"context": "甲", "qas": [{"id": "1", "question": "乙", "answers": [{"text": "丙"}]}]}]}
    ]
    marked.write_text("\ufeff" + json.dumps({"data": articles}), encoding="utf-8")
    assert make_task("cmrc2018").read([marked])[0].answers == ("丙",)
    chid = tmp_path / "dev.jsonl"
    chid.write_text('\ufeff{"content": "a#idiom1#", "candidates": ["b"]}', encoding="utf-8")
    (tmp_path / "dev_answer.json").write_text('\ufeff{"#idiom1#": 0}', encoding="utf-8")
    assert make_task("chid").read([chid])[0].options == ("b",)


def test_files_that_are_missing_or_not_utf8_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file or folder of OCNLI data"):
        make_task("ocnli").find(tmp_path / "none")
    (tmp_path / "dev.json").write_bytes("甲".encode("gbk"))
    with pytest.raises(InputError, match="dev.json: not UTF-8 at byte 0"):
        make_task("ocnli").read([tmp_path / "dev.json"])
    with pytest.raises(InputError, match="no 'dev' part of AFQMC there \\(there is nothing of the kind\\)"):
        (tmp_path / "empty").mkdir()
        make_task("afqmc").find(tmp_path / "empty")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: make_task("c4"), "unknown task 'c4' \\(did you mean 'c3'\\?\\); there are afqmc, c3"),
        (lambda: make_task("c3", scoring="right"), "scoring='right' must be 'corrected' or 'reference'"),
        (lambda: make_task("ocnli", scoring="reference"), "only c3 has more than one way of scoring"),
        (lambda: make_task("ocnli", negatives=3), "ocnli has no labels to sample from"),
        (lambda: make_task("tnews", negatives=-1), "negatives=-1: give 0 \\(all labels\\) or more"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_ids_are_unique_even_where_the_files_are_not(tmp_path):
    rows = [{"sentence1": "甲", "sentence2": "乙", "label": "neutral", "id": 7}] * 2
    files = [write_lines(tmp_path / folder / "dev.json", rows) for folder in ("a", "b")]
    found = make_task("ocnli").read(files)
    assert [question.id for question in found] == ["dev/7", "dev/7#2", "dev/7#3", "dev/7#4"]


def test_files_with_a_byte_order_mark_and_json_lists_are_read(tmp_path):
    rows = [{"sentence1": "甲", "sentence2": "乙", "label": "neutral"}]
    (tmp_path / "dev.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8-sig")
    assert len(make_task("ocnli").read([tmp_path / "dev.json"])) == 1


# ------------------------------------------------------------------------------------------- real published files

REAL = {
    "afqmc": ("dev", 4316, 4316),
    "chid": ("test", 2002, 2002),
    "cluewsc": ("test", 542, 976),
    "cmrc2018": ("trial", 1002, 1002),
    "ocnli": ("dev", 1478, 1478),
    "tnews": ("dev", 4928, 4928),
}


@pytest.mark.parametrize("name", REAL)
def test_the_published_files_are_read_whole(name, data_folder):
    split, questions, judgements = REAL[name]
    task = make_task(name)
    found = task.read(task.find(data_folder / "eval", split))
    assert (len(found), task.count(found)) == (questions, judgements)
    assert len({question.id for question in found}) == questions
    for question in found[:50]:
        for context, continuation in [task.text(question, option) for option in question.options or ("",)]:
            assert context + continuation and "{" not in context
