"""The mutations of `make mutants` can be made."""

import mutate
import pytest


def source(mutation):
    return (mutate.ROOT / mutation.file).read_text()


@pytest.mark.parametrize("mutation", mutate.MUTATIONS, ids=lambda each: each.name)
def test_a_mutation_changes_the_module_and_leaves_it_python(mutation):
    broken = mutate.mutated(mutation)
    assert broken != source(mutation)
    compile(broken, mutation.file, "exec")
    assert all((mutate.ROOT / each.split("::")[0]).exists() for each in (*mutation.tests, mutate.CHAPTER))


@pytest.mark.parametrize("old", ["no such source", "import "])
def test_what_is_not_there_once_is_no_mutation(old):
    with pytest.raises(ValueError, match="times, not once"):
        mutate.mutated(mutate.Mutation("wrong", "vlscore.py", old, "", ()))


@pytest.mark.parametrize("noticed, code", [(["tests/test_boxes.py::test"], 0), ([], 1)])
def test_a_mutation_that_survives_fails_and_the_checkout_stays(monkeypatch, capsys, noticed, code):
    seen, before = [], (mutate.ROOT / "vlscore.py").read_text()

    def caught_by(folder, tests):
        seen.append((folder / "vlscore.py").read_text())
        return noticed

    monkeypatch.setattr(mutate, "caught_by", caught_by)
    monkeypatch.setattr(mutate, "copy_repository", lambda folder: None)
    monkeypatch.setattr(mutate, "check_import", lambda folder: None)
    monkeypatch.setattr(mutate, "check_whole", lambda folder, tests: None)
    assert mutate.main(["cap removed"]) == code
    assert ("cap removed | vlscore.py | NOTHING" in capsys.readouterr().out) == (code == 1)
    assert len(seen) == 1 and seen[0] != before
    assert (mutate.ROOT / "vlscore.py").read_text() == before


def test_an_unknown_mutation_is_told(capsys):
    assert mutate.main(["nonsense"]) == 2
    assert "no mutation 'nonsense': scores negated, " in capsys.readouterr().err
