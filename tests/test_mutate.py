"""The mutations of `make mutants` can be made."""

import mutate
import pytest

SOURCE = (mutate.ROOT / "vlscore.py").read_text()


@pytest.mark.parametrize("mutation", mutate.MUTATIONS, ids=lambda each: each.name)
def test_a_mutation_changes_the_module_and_leaves_it_python(mutation):
    broken = mutate.mutated(SOURCE, mutation)
    assert broken != SOURCE
    compile(broken, "vlscore.py", "exec")
    assert all((mutate.ROOT / file).exists() for file in (*mutation.tests, mutate.CHAPTER))


@pytest.mark.parametrize("old", ["no such source", "import torch"])
def test_what_is_not_there_once_is_no_mutation(old):
    with pytest.raises(ValueError, match="times, not once"):
        mutate.mutated(SOURCE, mutate.Mutation("wrong", old, "", ()))
