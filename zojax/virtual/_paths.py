"""Paths of leaves as text, and what they say of a leaf."""


def path_name(path) -> str:
    """ "a/b/0" for a jax key path."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def is_head(path: str) -> bool:
    """Whether a path is of the output layer."""
    return not {"head", "lm_head", "classifier"}.isdisjoint(path.lower().split("/"))
