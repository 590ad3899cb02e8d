"""What both estimators do: read samples, train, keep what was trained, save it and load it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_X_y
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from sparse_dnm.config import TrainConfig
from sparse_dnm.data.datasets import Dataset
from sparse_dnm.data.preprocessing import ArrayInputs, Preprocessing
from sparse_dnm.io import CheckpointError
from sparse_dnm.model.manifold import DynamicManifold
from sparse_dnm.sklearn import samples as reading
from sparse_dnm.sklearn import sequences, settings
from sparse_dnm.sklearn.samples import Samples, dataset_of, features_of
from sparse_dnm.sklearn.trained import Trained
from sparse_dnm.sklearn.wording import Parameters
from sparse_dnm.train.trainer import Trainer, TrainingError
from sparse_dnm.train.validation import n_held_out
from sparse_dnm.wording import speaking

E = TypeVar("E", bound="BaseManifold")


class BaseManifold(BaseEstimator):
    """Parameters, and what does not depend on the task.  Subclasses say what the targets are."""

    def __init__(
        self,
        *,
        edges: int | None = None,
        budget_us: float | None = None,
        max_iter: int | None = None,
        learning_rate_init: float | None = None,
        batch_size: int | str = "auto",
        early_stopping: bool | str = "auto",
        validation_fraction: float | None = None,
        n_iter_no_change: int | None = None,
        warm_start: bool = False,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: bool | int = False,
        manifold_params: Mapping[str, Any] | None = None,
        train_params: Mapping[str, Any] | None = None,
    ) -> None:
        self.edges = edges
        self.budget_us = budget_us
        self.max_iter = max_iter
        self.learning_rate_init = learning_rate_init
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.manifold_params = manifold_params
        self.train_params = train_params

    # -- fit -------------------------------------------------------------------------------------------------

    def fit(self: E, X: Any, y: Any, sample_weight: Any = None) -> E:
        """Train a network on samples ``X`` (n, features) and their targets ``y``; ``sample_weight`` (n,) weighs them.

        ``X`` (n, time, features) are sequences, of which the shorter ones end with time steps of NaN: the network is
        then recurrent, and ``y`` has a target for each sequence.
        If an error or Ctrl-C ends it, the estimator stays as it was before.
        """
        with self._unchanged_by_errors():
            self._check_parameters()
            again = self.warm_start and hasattr(self, "_trained")
            samples = self._read(X, y, sample_weight, reset=not again)
            sum_of_weights = samples.sum_of_weights  # before those of classes
            samples = self._encoded(samples, again)
            full = settings.takes_all(self.batch_size, len(samples.targets), sum_of_weights)
            dtype = torch.float64 if full else torch.float32
            data = self._dataset(samples, y, self._trained if again else None, dtype)
            weight = sum_of_weights if full else None
            manifold, train = settings.configs_for(self._values(), data, settings.seed_of(self.random_state), weight)
            new = functools.partial(settings.network_of, manifold, train, dtype)
            self._train(self._trained.copy if again else new, data, train)
            self._calls = 0
        return self

    def _continue(self: E, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> E:
        """Take the network on through ``X`` once; the first time, make it."""
        with self._unchanged_by_errors():
            self._check_parameters()
            before = getattr(self, "_trained", None)
            self._check_continues(before is None)
            samples = self._read(X, y, sample_weight, reset=before is None)
            samples = self._encoded(samples, before is not None, True, classes)
            data = self._dataset(samples, y, before, torch.float32, partial=True)
            manifold, train = settings.configs_for(self._values(), data, settings.seed_of(self.random_state))
            calls = getattr(self, "_calls", 0) + 1
            train = settings.one_pass(train, len(data.x_train), calls)
            new = functools.partial(settings.network_of, manifold, train, torch.float32)
            self._train(before.copy if before else new, data, train, before and before.moments)
            self._calls = calls
        return self

    def _check_continues(self, first: bool) -> None:
        """Raise ValueError for parameters that partial_fit cannot follow."""
        name = "edges" if self.edges is not None else "budget_us"
        if first and getattr(self, name) is not None:
            raise ValueError(
                f"{name}={getattr(self, name)!r} makes a network smaller in the course of fit, and partial_fit sees "
                "its samples once: call fit first, or leave the parameter out"
            )

    def _dataset(
        self, samples: Samples, y: Any, before: Trained | None, dtype: torch.dtype, partial: bool = False
    ) -> Dataset:
        """The samples for a training; of a network that was trained ``before``, as it reads them."""
        warned: list[str] = []
        if before is not None:
            made = before.preprocessing.varied(*sequences.in_rows(samples.features, samples.weights))
            data = dataset_of(samples, made, before.model.alpha.dtype, warned)
            self._warn(warned, partial)
            return data
        names = tuple(map(str, getattr(self, "feature_names_in_", ())))
        made = reading.preprocessing_for(samples, names, reading.names_of(y), getattr(self, "classes_", None), warned)
        self._warn(warned, partial)
        return dataset_of(samples, made, dtype)

    def _warn(self, texts: Iterable[str], partial: bool) -> None:
        """Warn of what is doubtful in the samples of a fit; the line is the user's."""
        for text in texts:
            warnings.warn(text, stacklevel=4 + partial)

    def _encoded(self, samples: Samples, again: bool, partial: bool = False, classes: Any = None) -> Samples:
        """The samples with targets as a network has them; ``again``: the classes are known."""
        raise NotImplementedError

    def _train(
        self,
        make: Callable[[], DynamicManifold],
        data: Dataset,
        train: TrainConfig,
        moments: dict[str, Tensor] | None = None,
    ) -> None:
        """Train a network that ``make`` gives, and keep it.

        Where features say nothing of the targets, the decay of omega takes every edge away; it is then lowered.
        """
        for share in settings.DECAYS if train.omega_decay else (1.0,):
            model, lowered = make(), dataclasses.replace(train, omega_decay=share * train.omega_decay)
            try:
                return self._train_once(model, data, lowered, moments)
            except TrainingError:
                if model.connected or not lowered.omega_decay:
                    raise

    def _train_once(
        self, model: DynamicManifold, data: Dataset, train: TrainConfig, moments: dict[str, Tensor] | None
    ) -> None:
        lines: list[dict[str, Any]] = []

        def log(line: dict[str, Any]) -> None:
            lines.append(line)
            self._say(f"step {line['step']:,} of {train.steps:,}: loss {line['loss']:.4g}, {line['edges']:,} edges")

        trainer = Trainer(model, data, train)
        if moments is not None:
            trainer.continue_from(moments)
        with speaking(self._words(settings.steps_per_epoch(train, len(trainer.data.x_train)))):
            summary = trainer.run(log)
        for note in trainer.notes:
            if note.startswith("warning: "):
                warnings.warn(note.removeprefix("warning: "), ConvergenceWarning, stacklevel=5)
            else:
                self._say(note)
        assert data.preprocessing is not None
        moments = trainer.optimizer_state()
        made = Trained(model, data.preprocessing, train, moments, summary, lines, trainer.description)
        self._keep(made, len(trainer.data.x_train))

    def _say(self, text: str) -> None:
        if self.verbose:
            print(f"[{type(self).__name__}] {text}", flush=True)

    def _keep(self, trained: Trained, n_samples: int) -> None:
        """Set what fit sets; ``n_samples``: that steps are made with."""
        self._trained = trained
        self.summary_ = trained.summary
        self.loss_curve_ = [line["loss"] for line in trained.lines]
        self.n_iter_ = math.ceil(trained.summary["steps"] / settings.steps_per_epoch(trained.train, n_samples))

    @property
    def model_(self) -> DynamicManifold:
        """The trained network, a module of torch."""
        if "_trained" not in vars(self):
            raise AttributeError(f"this {type(self).__name__} has no model_ yet; call fit first")
        return self._trained.model

    @property
    def preprocessing_(self) -> Preprocessing:
        """How samples become inputs of the network, and its outputs predictions."""
        if "_trained" not in vars(self):
            raise AttributeError(f"this {type(self).__name__} has no preprocessing_ yet; call fit first")
        return self._trained.preprocessing

    # -- predict ---------------------------------------------------------------------------------------------

    def _outputs(self, X: Any) -> Tensor:
        """Outputs of the network for checked samples."""
        check_is_fitted(self)
        warned: list[str] = []
        with speaking(self._words()):
            if self._takes_sequences(X, reset=False):
                features = sequences.features_of(self, X, reset=False)
            else:
                features = features_of(self, X, self._reads_tables, reset=False)
            outputs = self._trained.outputs(features, warned)
        for text in warned:
            warnings.warn(text, stacklevel=3)
        return outputs

    def _takes_sequences(self, X: Any, reset: bool) -> bool:
        """Whether ``X`` is, or has to be, an array of sequences; of a new network it decides."""
        return sequences.is_sequences(X) if reset else self._trained.model.recurrent

    @property
    def _reads_tables(self) -> bool:
        """Whether columns are read by the rules of tables, not as numbers alone."""
        return not isinstance(self._trained.preprocessing.features, ArrayInputs)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = tags.input_tags.three_d_array = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return "_trained" in vars(self)

    # -- samples and parameters ------------------------------------------------------------------------------

    def _values(self) -> dict[str, Any]:
        return dict(self.get_params(deep=False))

    def _words(self, per_pass: int = 1) -> Parameters:
        """How messages name parameters; ``per_pass``: steps that take every sample once."""
        dicts = [self.manifold_params, self.train_params]
        return Parameters({key for each in dicts if isinstance(each, Mapping) for key in each}, per_pass)

    def _check_parameters(self) -> None:
        settings.check_parameters(type(self).__name__, self._values())

    def _read(self, X: Any, y: Any, sample_weight: Any, reset: bool) -> Samples:
        """The samples of positive weight, checked; of a classification the targets are still labels."""
        if y is None:
            raise ValueError(f"This {type(self).__name__} estimator requires y to be passed, but the target y is None.")
        y = reading.plain_targets(y)
        checks, in_time = self._target_checks, self._takes_sequences(X, reset)
        tables = reading.is_table(X) if reset else self._reads_tables or reading.has_gaps(self, X)
        if in_time or tables:
            features = sequences.features_of(self, X, reset) if in_time else features_of(self, X, True, reset)
            _, targets = check_X_y(np.zeros((len(features), 1)), y, **checks)
        else:
            reading.check_names(X)
            reading.check_numbers(X)
            sequences.check_flat(X)
            checks |= {"dtype": sequences.FLOATS, "accept_sparse": reading.SPARSE}
            features, targets = validate_data(self, X, y, reset=reset, **checks)
            features = reading.dense(features)
        reading.check_no_dates(targets)
        return reading.of_positive_weight(features, targets, reading.weights_of(sample_weight, len(targets)))

    @property
    def _target_checks(self) -> dict[str, Any]:
        """Arguments for scikit-learn's check of the targets."""
        raise NotImplementedError

    @contextlib.contextmanager
    def _unchanged_by_errors(self) -> Iterator[None]:
        """If the body raises an error, or is interrupted, the estimator is as it was before; messages name its
        parameters."""
        before = dict(self.__dict__)
        try:
            with speaking(self._words()):
                yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    # -- run directories -------------------------------------------------------------------------------------

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write a run directory, as `sparse-dnm train` does, with the parameters of this estimator.

        Raises ValueError if ``directory`` holds a run already.
        """
        check_is_fitted(self)
        about = {"class": type(self).__name__, "parameters": settings.to_json(self._values())}
        with speaking(self._words()):
            self._trained.save(Path(directory), about)

    @classmethod
    def load(cls: type[E], directory: str | os.PathLike[str]) -> E:
        """The estimator of a run directory: of `save`, or of `sparse-dnm train`, then with the default parameters.

        Raises CheckpointError naming the file and what is wrong in it.
        """
        trained, about = Trained.load(Path(directory))
        made = cls(**settings.from_json(about["parameters"], cls._get_param_names()) if about else {})
        made._take(trained, Path(directory))
        return made

    def _take(self, trained: Trained, directory: Path) -> None:
        """Be fitted by what a run directory holds.  Raises CheckpointError where sequences have many targets."""
        if trained.description.get("per_step"):
            raise CheckpointError(
                f"{directory} has a target for each time step, and an estimator one for each sequence; use "
                "sparse_dnm.load"
            )
        inputs = trained.preprocessing.features
        self.n_features_in_ = inputs.n_inputs if isinstance(inputs, ArrayInputs) else len(inputs.names)
        if inputs.names:
            self.feature_names_in_ = np.array(inputs.names, dtype=object)
        n_samples = trained.description.get("n_train", 1)
        self._keep(trained, max(1, n_samples - n_held_out(n_samples, trained.train)))
