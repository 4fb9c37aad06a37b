"""skorch builds the optimizer from a class and parameters, and scikit-learn clones and searches over them."""

import pytest
import sklearn.base
import sklearn.model_selection
import torch
from frameworks import LR, bare_loop, framework, same_bits, small_data, small_loader, small_model
from readme import run_snippet

from cyclic_optim import CyclicSGD, OneCycle, Triangular

skorch = framework("skorch")
pytestmark = pytest.mark.ecosystem

STEPS = 24  # 3 epochs of 8 batches
POLICY = OneCycle(total_steps=STEPS)


class Net(torch.nn.Module):
    """As skorch wants a module to be: built from its class."""

    def __init__(self):
        super().__init__()
        self.body = small_model()

    def forward(self, inputs):
        return self.body(inputs)


def train():
    inputs, classes = small_data()
    return run_snippet(
        __file__,
        NeuralNetClassifier=lambda *args, **kwargs: skorch.NeuralNetClassifier(*args, verbose=0, **kwargs),
        CrossEntropyLoss=torch.nn.CrossEntropyLoss,
        CyclicSGD=CyclicSGD,
        Net=Net,
        inputs=inputs,
        classes=classes,
        policy=POLICY,
    )["net"]


def test_it_equals_the_bare_loop():
    """Trained by skorch the weights are those of the loop without it, to the bit, and the rate given is the peak."""
    net, alone = train(), small_model()
    by_hand = bare_loop(alone, list(small_loader()) * 3, POLICY)
    assert net.optimizer_.param_groups[0]["max_lr"] == LR
    assert same_bits(net.module_.body, alone)
    assert same_bits(net.optimizer_, by_hand)


def test_scikit_learn_searches_over_policies():
    """A policy is a parameter like any other: ``clone`` keeps it, and ``GridSearchCV`` tries several."""
    net, (inputs, classes) = train(), small_data()
    assert sklearn.base.clone(net).get_params()["optimizer__policy"] == POLICY
    policies = [POLICY, Triangular(step_size_up=4)]
    search = sklearn.model_selection.GridSearchCV(net, {"optimizer__policy": policies}, cv=2, scoring="accuracy")
    search.fit(inputs.numpy(), classes.numpy())
    assert [tried["optimizer__policy"] for tried in search.cv_results_["params"]] == policies
    assert search.best_estimator_.optimizer_.policy == search.best_params_["optimizer__policy"]


def test_a_run_resumes_to_the_bit(tmp_path):
    """Saved and loaded by skorch, the rest of the run ends in the same bits as without the break."""
    inputs, classes = small_data()
    whole = train()
    files = {"f_params": tmp_path / "params.pt", "f_optimizer": tmp_path / "optimizer.pt"}
    first = sklearn.base.clone(whole).initialize().fit_loop(inputs, classes, epochs=1)
    first.save_params(**files)
    resumed = sklearn.base.clone(whole).initialize()
    resumed.load_params(**files)
    assert resumed.optimizer_.param_groups[0]["schedule_step"] == 8
    resumed.fit_loop(inputs, classes, epochs=2)
    assert same_bits(resumed.module_, whole.module_)
    assert same_bits(resumed.optimizer_, whole.optimizer_)
