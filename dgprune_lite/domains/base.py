"""The base class of every data set: labelled images that know which domain they come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch.utils.data import Dataset

from dgprune_lite.checks import named_domains, nearest_name


class MultipleDomainDataset:
    """The domains of one data set, each a ``Dataset`` of (image, label) pairs, by name.

    A subclass calls ``__init__`` with its domains; or it sets the attributes (``ENVIRONMENTS``,
    ``class_names``, ``input_shape``) itself and overrides ``open_domain``, which is called on first
    access only. Iterating yields the *names*, as for a mapping. The names of the attributes are
    DomainBed's (Gulrajani and Lopez-Paz, ICLR 2021).

    Args:
        domains: Domain name to a map-style dataset of (image, label): image float32
            (channels, height, width), label an integer in [0, number of classes).
        class_names: Names of the classes, in label order.
        input_shape: (channels, height, width) of every image.

    Raises:
        ValueError: There is no domain or no class, or the shape is not three positive sizes.

    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> part = TensorDataset(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
    >>> pets = MultipleDomainDataset({"photo": part, "sketch": part}, ("cat", "dog"), (3, 8, 8))
    >>> list(pets), len(pets), len(pets["sketch"])
    (['photo', 'sketch'], 2, 2)
    """

    ENVIRONMENTS: tuple[str, ...] = ()
    FOLDERS: Mapping[str, str] = {}  # domain name to its folder's, where there are folders
    class_names: tuple[str, ...] = ()
    input_shape: tuple[int, int, int]

    def __init__(
        self,
        domains: Mapping[str, Dataset],
        class_names: Iterable[str],
        input_shape: tuple[int, int, int],
    ) -> None:
        self._opened = named_domains(domains, "domains", example="{'photo': dataset}")
        self.ENVIRONMENTS = tuple(self._opened)
        self.class_names = tuple(class_names)
        if not self.class_names:
            raise ValueError("class_names is empty; expected one name a class")
        if len(input_shape) != 3 or min(input_shape) < 1:
            raise ValueError(
                f"input_shape is {input_shape!r}; expected (channels, height, width), all positive"
            )
        self.input_shape = input_shape

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def open_domain(self, name: str) -> Dataset:
        """Return the dataset of one domain; a subclass that opens its domains late overrides it."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to open {name!r}")

    def resolve(self, env: str | int) -> str:
        """Return the domain that a name, its folder's, or an index as DomainBed's stands for."""
        pairs = [(name, self.FOLDERS.get(name, name)) for name in self.ENVIRONMENTS]
        known = ", ".join(name if name == other else f"{name} ({other})" for name, other in pairs)
        dataset, last = type(self).__name__, len(self) - 1
        if isinstance(env, bool) or not isinstance(env, (str, int)):
            raise TypeError(
                f"domain {env!r} is a {type(env).__name__}; expected a name ({known}) "
                f"or an index from 0 to {last}"
            )
        if isinstance(env, str):
            if found := [pair[0] for pair in pairs if env in pair]:
                return found[0]
            near = nearest_name(env, [name for pair in pairs for name in pair])
            raise ValueError(f"{dataset} has no domain {env!r}; expected one of {known}.{near}")
        if not 0 <= env <= last:
            raise ValueError(
                f"{dataset} has no domain number {env}; expected 0 to {last} ({known})"
            )
        return self.ENVIRONMENTS[env]

    def __getitem__(self, env: str | int) -> Dataset:
        name = self.resolve(env)
        # A subclass that opens its domains late need not call `super().__init__`.
        opened: dict[str, Dataset] = self.__dict__.setdefault("_opened", {})
        if name not in opened:
            opened[name] = self.open_domain(name)
        return opened[name]

    def for_training(self, env: str | int) -> Dataset:
        """Return a domain as training sees it: the same images, augmented if a subclass does so."""
        return self[env]

    def __len__(self) -> int:
        return len(self.ENVIRONMENTS)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ENVIRONMENTS)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(self.ENVIRONMENTS)}; "
            f"{self.num_classes} classes, images {'×'.join(map(str, self.input_shape))})"
        )
