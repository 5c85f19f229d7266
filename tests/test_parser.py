import pytest

from fastdistill.parser import Parser, check_keys, keys, read_options, unknown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cout=3"], "expected an option that fastdistill knows, got '--cout': did you mean --count"),
        (["--count=many"], "expected count of type int, got 'many' in a file: see fastdistill try --help"),
        (["--count"], "expected a value after --count, got none"),
        (["word"], "expected options only, got 'word'"),
    ],
)
def test_wrong_words_end_with_one_sentence_and_2(words, said, capsys):
    parser = Parser(prog="fastdistill try")
    parser.add_argument("--count", type=int)
    parser.where = " in a file" if "many" in words[0] else ""
    with pytest.raises(SystemExit) as stop:
        parser.parse(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fastdistill try: {said}")
    assert error.count("\n") == 1


def test_keys_are_dotted():
    assert list(keys({"a": 1, "b": {"c": 2, "d": {"e": 3}}})) == [("a", 1), ("b.c", 2), ("b.d", {"e": 3})]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"b": 3}, "expected options below b in here, got 3: indent them"),
        ({"b": {"d": 3}}, "expected a key in here that fastdistill knows, got 'b.d': did you mean"),
        ({"c": 3}, "got 'c': did you mean b.c"),
        ({"zzz": 3}, "got 'zzz': see the list"),
    ],
)
def test_unknown_keys_are_refused_with_their_place(content, said):
    check_keys({"a": 1, "b": {"c": 2}}, "here", ["a", "b.c"], "the list")
    with pytest.raises(ValueError, match=said):
        check_keys(content, "here", ["a", "b.c"], "the list")


@pytest.mark.parametrize(
    ("text", "said"),
    [("- a", "expected a mapping of options in .*got list"), ("a: [", "expected YAML in "), (None, "got")],
)
def test_files_that_hold_no_options_are_refused(text, said, tmp_path):
    path = tmp_path / "file.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_options(path)


def test_the_right_key_without_its_group_is_found():
    assert unknown("a key", "c", ["a", "b.c"], "the list").endswith("got 'c': did you mean b.c")
