"""The schedules of the papers, by the papers' own formulas and numbers.

The oracle is what a paper, or the repository of the runs it reports, states. Where it states a run that is long, the
policy is asked; elsewhere an optimizer makes the steps.

- CLR: L. N. Smith 2017, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186.
- Super-convergence: L. N. Smith & N. Topin 2018, arXiv:1708.07120; its runs, and the numbers of their
  figures: github.com/lnsmith54/super-convergence.
- 1cycle: L. N. Smith 2018, "A disciplined approach to neural network hyper-parameters: Part 1", arXiv:1803.09820;
  its runs: github.com/lnsmith54/hyperParam1.
- SGDR: I. Loshchilov & F. Hutter 2017, "Stochastic Gradient Descent with Warm Restarts", arXiv:1608.03983.
- Tricks: L. Bottou 2012, "Stochastic Gradient Descent Tricks".
- Linear decay: A. Defazio, A. Cutkosky, H. Mehta & K. Mishchenko 2023, "Optimal Linear Decay Learning Rate Schedules
  and Further Refinements" (at first "When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement"),
  arXiv:2310.07831.
- Cooldown: A. Hägele, E. Bakouch, A. Kosson, L. Ben Allal, L. von Werra & M. Jaggi 2024, "Scaling Laws and
  Compute-Optimal Training Beyond Fixed Training Durations", arXiv:2405.18392; its code:
  github.com/epfml/schedules-and-scaling.
- Cyclical steps: B. Goujaud, D. Scieur, A. Dieuleveut, A. B. Taylor & F. Pedregosa 2022, "Super-Acceleration with
  Cyclical Step-sizes", PMLR 151; two of the authors on it: fa.bianp.net/blog/2022/cyclical.
- General cyclical training: L. N. Smith 2022, "General Cyclical Training of Neural Networks", arXiv:2202.08835; its
  code: github.com/lnsmith54/CFL.
"""

import functools
import math

import pytest
import torch

from cyclic_optim import (
    Combined,
    Constant,
    CosineDecay,
    CosineRestarts,
    CyclicSGD,
    ExpRange,
    InverseTimeDecay,
    LinearDecay,
    LinearRamp,
    MultiStepDecay,
    OneCycle,
    Sequential,
    Staircase,
    Triangular,
    Triangular2,
    WarmupStableDecay,
)

close = functools.partial(pytest.approx, rel=1e-12)


def used(policy, lr, steps):
    """The rate and the momentum that each of so many real steps uses."""
    param = torch.nn.Parameter(torch.zeros(1))
    param.grad = torch.zeros(1)
    optimizer = CyclicSGD([param], lr=lr, momentum=0.9, policy=policy)
    values = []
    for _ in range(steps):
        values.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
    return values


def rates(policy, lr, steps):
    return [rate for rate, _ in used(policy, lr, steps)]


# -- CLR


def clr(iteration, stepsize, base_lr, max_lr, scale=1):
    """The code that section 3.1 of CLR adds to Torch; ``scale`` is for the policies that reduce the difference."""
    cycle = math.floor(1 + iteration / (2 * stepsize))
    x = abs(iteration / stepsize - 2 * cycle + 1)
    return base_lr + (max_lr - base_lr) * max(0, 1 - x) * scale


EPOCH = 50_000 // 100  # CIFAR-10's images over the batch size, section 3.2


def test_triangular_is_the_code_of_the_paper():
    """CLR, section 3.1: with Figure 1's settings, from .001 to .006 in 2,000 iterations and back after 4,000, the rate
    is that of the code at each iteration of three cycles."""
    expected = [clr(iteration, 2000, 0.001, 0.006) for iteration in range(12_001)]
    seen = rates(Triangular(step_size_up=2000, div_factor=0.006 / 0.001, cycle_momentum=False), 0.006, 12_001)
    assert seen == close(expected)
    assert [seen[iteration] for iteration in (0, 1000, 2000, 3000, 4000, 6000)] == close(
        [0.001, 0.0035, 0.006, 0.0035, 0.001, 0.006]
    )


@pytest.mark.parametrize("epochs", [2, 4, 8, 10])
def test_the_stepsize_is_so_many_epochs(epochs):
    """CLR, section 3.2: an epoch of CIFAR-10 has 500 iterations, and a stepsize of 2 to 10 epochs is good (2 and 8 are
    compared, 4 are used in section 4.1.1): the peak comes after so many epochs, and the end of the cycle after twice as
    many."""
    seen = rates(Triangular(step_size_up=epochs * EPOCH, div_factor=6, cycle_momentum=False), 0.006, 25 * EPOCH)
    assert seen.index(max(seen)) == epochs * 500
    assert seen.index(min(seen), 1) == 2 * epochs * 500


IMAGENET = 1_281_167  # images, section 4.2


@pytest.mark.parametrize(
    ("batch", "epoch", "base_lr", "max_lr"),
    [
        pytest.param(256, 5005, 0.01, 0.015, id="AlexNet-4.2.1"),
        pytest.param(128, 10_009, 0.01, 0.026, id="GoogLeNet-4.2.2"),
    ],
)
def test_triangular2_halves_the_difference_after_each_cycle(batch, epoch, base_lr, max_lr):
    """CLR, sections 3.1 and 4.2: in cycles of 60,000 iterations (12 and 6 epochs, nearly) the rate starts and ends at
    the lower bound, and each peak is half as far above it as the one before."""
    assert round(IMAGENET / batch) == epoch
    policy = Triangular2(step_size_up=30_000, div_factor=max_lr / base_lr, cycle_momentum=False)
    for cycle in range(8):
        ends = [max_lr * policy.at(cycle * 60_000 + into).lr_factor for into in (0, 30_000, 60_000)]
        assert ends == close([base_lr, base_lr + (max_lr - base_lr) / 2**cycle, base_lr])
    for iteration in range(0, 480_000, 997):
        expected = clr(iteration, 30_000, base_lr, max_lr, 1 / 2 ** (iteration // 60_000))
        assert max_lr * policy.at(iteration).lr_factor == close(expected)


@pytest.mark.parametrize(
    ("stepsize", "base_lr", "max_lr", "gamma", "last"),
    [
        pytest.param(2000, 0.001, 0.006, 0.99994, 42_000, id="CIFAR-10-4.1.1"),
        pytest.param(30_000, 0.006, 0.014, 0.999995, 300_000, id="AlexNet-4.2.1"),
        pytest.param(30_000, 0.01, 0.026, 0.99998, 300_000, id="GoogLeNet-4.2.2"),
    ],
)
def test_exp_range_reduces_the_difference_by_gamma_per_iteration(stepsize, base_lr, max_lr, gamma, last):
    """CLR, section 3.1, with the gammas of section 4: the difference of the bounds is reduced to gamma**iteration of
    itself. The lower bound stays where it is, as in CyclicLR and in the Keras code that the paper's appendix B names;
    the paper's sentence has it decline as well."""
    policy = ExpRange(step_size_up=stepsize, div_factor=max_lr / base_lr, cycle_momentum=False, gamma=gamma)
    for iteration in [*range(0, last, 487), *range(0, last + 1, stepsize)]:
        expected = clr(iteration, stepsize, base_lr, max_lr, gamma**iteration)
        assert max_lr * policy.at(iteration).lr_factor == close(expected)


def test_the_decay_policy_that_only_falls():
    """CLR, section 4.1.1: from .007 the rate is reduced linearly to .001 in 4,000 iterations, and fixed there."""
    seen = rates(LinearRamp(4000, start_factor=1, end_factor=0.001 / 0.007), 0.007, 4500)
    assert seen[:4001] == close([0.007 - 0.006 * iteration / 4000 for iteration in range(4001)])
    assert seen[4000:] == close([0.001] * 500)


RANGE_TESTS = [
    pytest.param(4 * 10_009, 0.001, 0.065, id="GoogLeNet-CLR-4.2.2"),  # 4 epochs
    pytest.param(20_000, 0, 3.0, id="Super-convergence-2b"),
    pytest.param(20_000, 0, 1.5, id="Super-convergence-4a"),
]


@pytest.mark.parametrize(("stepsize", "base_lr", "max_lr"), RANGE_TESTS)
def test_a_range_test_climbs_linearly_all_the_way(stepsize, base_lr, max_lr):
    """CLR, section 3.3: the rate increases linearly from the lowest to the highest over the whole test, by a ramp and,
    as the paper sets it up, by a triangle whose stepsize is the number of iterations."""
    policies = [LinearRamp(stepsize, start_factor=base_lr / max_lr)]
    if base_lr > 0:
        policies.append(Triangular(step_size_up=stepsize, div_factor=max_lr / base_lr, cycle_momentum=False))
    for policy in policies:
        for iteration in [*range(0, stepsize, 101), stepsize]:
            expected = base_lr + (max_lr - base_lr) * iteration / stepsize
            assert max_lr * policy.at(iteration).lr_factor == close(expected)


# -- Super-convergence and 1cycle: the values that Caffe logged in the papers' own runs


def printed(value):
    """The six digits that Caffe prints of it."""
    return float(f"{value:.6g}")


FIGURE_1A = {0: 0.1, 100: 0.158, 500: 0.39, 1000: 0.68, 2000: 1.26, 2500: 1.55, 7500: 1.55, 8000: 1.26, 9000: 0.68}
FIGURE_1A |= {9500: 0.39, 9900: 0.158}


def test_super_convergence_in_10_000_iterations():
    """Super-convergence, Figure 1a (the run clr3SS5kFig1a): one cycle from .1 to 3 and back in steps of 5,000."""
    seen = rates(Triangular(step_size_up=5000, div_factor=3 / 0.1, cycle_momentum=False), 3.0, 10_001)
    assert {iteration: printed(seen[iteration]) for iteration in FIGURE_1A} == FIGURE_1A
    assert (seen[5000], seen[10_000]) == close((3.0, 0.1))


# Rate and momentum by iteration.
WIDE_RESNET = {
    0: (0.1, 0.95),
    200: (0.180142, 0.941095),
    400: (0.260285, 0.932191),
    1000: (0.500712, 0.905476),
    1600: (0.74114, 0.878762),
    2200: (0.981567, 0.852048),
    2400: (0.931434, 0.856857),
    3000: (0.664292, 0.883571),
    3800: (0.308103, 0.91919),
    4200: (0.130009, 0.936999),
    4400: (0.0409617, 0.945904),
    4600: (0.0001, None),  # here the run's momentum cycles on
    4800: (0.0001, None),
}
STEPSIZE, TOTAL = 2246, 4882


def test_1cycle_climbs_cycles_momentum_and_ends_as_the_run_did():
    """1cycle, sections 4.1, 4.3 and 5.1 (the run Wide1CycLR.1001CM0.95.85): in 2,246 of 4,882 iterations the rate
    climbs from .1 to 1 while momentum falls from .95 to .85, and in as many momentum climbs back; the last rate is a
    thousandth of the first."""
    shape = {"pct_start": (STEPSIZE + 1) / TOTAL, "anneal_strategy": "linear", "three_phase": True}
    momenta = {"base_momentum": 0.85, "max_momentum": 0.95}
    policy = OneCycle(TOTAL, **shape, **momenta, div_factor=1.0 / 0.1, final_div_factor=1000)
    seen = used(policy, 1.0, TOTAL)
    for iteration, (rate, momentum) in WIDE_RESNET.items():
        if iteration <= STEPSIZE:
            assert printed(seen[iteration][0]) == rate
        if momentum is not None:
            assert printed(seen[iteration][1]) == momentum
    assert seen[STEPSIZE] == close((1.0, 0.85))
    assert seen[2 * STEPSIZE] == close((0.1, 0.95))
    assert printed(seen[-1][0]) == WIDE_RESNET[4800][0]


def test_the_whole_run_is_a_sequence_of_ramps():
    """The same run fell to 0 where the paper says to the first rate, and stayed at a thousandth of that from then on:
    ramps in a row give its rate at every iteration logged."""
    ramps = LinearRamp(STEPSIZE, start_factor=0.1), LinearRamp(STEPSIZE, start_factor=1, end_factor=0)
    policy = Sequential((*ramps, LinearRamp(1, start_factor=1e-4, end_factor=1e-4)), (STEPSIZE, 2 * STEPSIZE))
    seen = rates(policy, 1.0, TOTAL)
    for iteration, (rate, _) in WIDE_RESNET.items():
        assert printed(seen[iteration]) == rate


def test_1cycle_for_imagenet():
    """1cycle, section 5.5 (Imagenet/resnet/bsolver1): between .05 and 1, and .95 and .85, with a stepsize of 440,000 in
    980,000 iterations."""
    policy = OneCycle(
        980_000, pct_start=440_001 / 980_000, anneal_strategy="linear", three_phase=True, div_factor=1 / 0.05
    )
    for iteration, values in [
        (0, (0.05, 0.95)),
        (220_000, (0.525, 0.9)),
        (440_000, (1, 0.85)),
        (880_000, (0.05, 0.95)),
    ]:
        assert policy.at(iteration)[:2] == close(values)
    assert policy.at(979_999).lr_factor < 0.05 / 1000


# -- SGDR

BATCHES = 10  # per epoch: T_cur "can take discredited values such as 0.1, 0.2, etc."
EPOCHS = 200


def sgdr(t_0, t_mult):
    """Equation (5) from .05 to 0, with T_cur updated at each batch, and the epochs at which a run starts."""
    length, batch, rates, starts = t_0, 0, [], [0]
    for step in range(EPOCHS * BATCHES):
        if batch == length * BATCHES:
            length, batch = length * t_mult, 0
            starts.append(step / BATCHES)
        t_cur = batch / BATCHES
        rates.append(0 + 1 / 2 * (0.05 - 0) * (1 + math.cos(t_cur / length * math.pi)))
        batch += 1
    return rates, starts


@pytest.mark.parametrize(
    ("t_0", "t_mult", "starts"),
    [
        (50, 1, [0, 50, 100, 150]),
        (100, 1, [0, 100]),
        (200, 1, [0]),
        (1, 2, [0, 1, 3, 7, 15, 31, 63, 127]),
        (10, 2, [0, 10, 30, 70, 150]),
    ],
)
def test_warm_restarts_are_equation_5(t_0, t_mult, starts):
    """SGDR, section 3 and the settings of Figure 1 and Table 1: the rate is equation (5)'s at every batch of the 200
    epochs, and the restarts come when they should (section 4.3 takes snapshots before those at 30, 70 and 150)."""
    expected, started = sgdr(t_0, t_mult)
    seen = rates(CosineRestarts(t_0=t_0 * BATCHES, t_mult=t_mult), 0.05, EPOCHS * BATCHES)
    assert started == starts
    assert seen == close(expected)
    assert [step / BATCHES for step, rate in enumerate(seen) if rate == 0.05] == starts


# -- steps and 1/t


@pytest.mark.parametrize("batches", [1, 391])
@pytest.mark.parametrize(
    ("lr", "gamma", "drops", "epochs"),
    [
        pytest.param(0.1, 0.2, (60, 120, 160), 200, id="wide-resnet-SGDR-4.1"),
        pytest.param(0.05, 0.2, (60, 120, 160), 200, id="wide-resnet-SGDR-4.2"),
        pytest.param(0.025, 0.1, (10, 15, 20), 30, id="EEG-SGDR-4.4"),
        pytest.param(0.05, 0.1, (10, 15, 20), 30, id="EEG-SGDR-4.4-higher"),
        pytest.param(0.35, 0.1, (50_000, 70_000), 80_000, id="Super-convergence-1a"),  # in iterations
    ],
)
def test_drops_come_when_the_papers_say(lr, gamma, drops, epochs, batches):
    """SGDR, sections 4.1, 4.2 and 4.4, and Super-convergence, Figure 1a: times gamma at each of the epochs (or
    iterations) named, first felt by that epoch's first batch."""
    policy = Staircase(MultiStepDecay(drops, gamma), batches)
    bounds = [0, *drops, epochs]
    for count in range(len(drops) + 1):
        first, last = bounds[count] * batches, bounds[count + 1] * batches - 1
        for step in (first, (first + last) // 2, last):
            assert lr * policy.at(step).lr_factor == close(lr * gamma**count)


@pytest.mark.parametrize(("gamma_0", "decay"), [(1.0, 1e-4), (0.1, 1e-4), (0.5, 5e-6)])
def test_the_gain_of_bottou(gamma_0, decay):
    """Tricks, section 5.2: gamma_t = gamma_0 / (1 + gamma_0 lambda t), lambda being the weight decay."""
    seen = rates(InverseTimeDecay(gamma_0 * decay), gamma_0, 5000)
    assert seen == close([gamma_0 * (1 + gamma_0 * decay * t) ** -1 for t in range(5000)])


# -- linear decay


@pytest.mark.parametrize("total", [1, 10, 1000])
def test_linear_decay_is_1_minus_t_over_the_total(total):
    """Linear decay, abstract and section 1: the baseline rate is multiplied by 1 - t / T."""
    seen = rates(LinearDecay(total), 0.3, total + 1)
    assert seen == close([0.3 * (1 - t / total) for t in range(total + 1)])


def test_the_last_iterate_of_linear_decay_is_the_mean_of_a_constant_rates():
    """Linear decay, abstract: the guarantee is for the last iterate, where others are for an average. For gradients
    that do not depend on the iterate, the one is the other, exactly."""
    gradients = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def iterates(policy):
        param = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = CyclicSGD([param], lr=0.1, policy=policy)
        for gradient in gradients:
            param.grad = gradient.clone()
            optimizer.step()
            yield param.detach().clone()

    *_, last = iterates(LinearDecay(len(gradients)))
    torch.testing.assert_close(last, torch.stack([*iterates(Constant())]).mean(0))


# -- constant rate and cooldown

COOLDOWNS = {"linear": lambda done: 1 - done, "sqrt": lambda done: 1 - math.sqrt(done)}


@pytest.mark.parametrize("shape", COOLDOWNS)
def test_a_constant_rate_cools_down_over_the_last_fifth(shape):
    """Cooldown, equation (1) and section 3.2: the peak until the last 20 % of the steps, then to 0 on a line or by
    1 - sqrt. (Our warm-up makes no update at a rate of 0.)"""
    total, warmup = 1000, 30
    policy = WarmupStableDecay(total, warmup=warmup, decay=total // 5, shape=shape)
    seen = rates(policy, 1e-3, total)
    assert seen[:warmup] == close([1e-3 * (n + 1) / (warmup + 1) for n in range(warmup)])
    assert seen[warmup:800] == [1e-3] * (800 - warmup)
    assert seen[800:] == close([1e-3 * COOLDOWNS[shape]((n - 800) / 200) for n in range(800, total)])


def test_one_long_run_is_cooled_down_at_several_lengths():
    """Cooldown, section 3.2 and Figure 4: from checkpoints of one run at a constant rate, a cooldown of 20 % for each
    length (there every 20,000 steps of 200,000; here every 20 of 200). Each branch has the rates of a run that was laid
    out for its length."""
    param = torch.nn.Parameter(torch.zeros(1))
    param.grad = torch.zeros(1)
    run = CyclicSGD([param], lr=1e-3, policy=Constant())
    checkpoints = {}
    for step in range(200):
        checkpoints[step] = run.state_dict()
        run.step()
    for length in range(20, 201, 20):
        start, down = length * 4 // 5, length // 5
        branch = CyclicSGD([param], lr=1e-3, policy=Constant())
        branch.load_state_dict(checkpoints[start])
        branch.reschedule(policy=WarmupStableDecay(down, warmup=0, decay=down, shape="sqrt"), step=0)
        laid_out = WarmupStableDecay(length, warmup=0, decay=down, shape="sqrt")
        for step in range(start, length):
            assert branch.param_groups[0]["lr"] == close(1e-3 * laid_out.at(step).lr_factor)
            branch.step()


# -- cyclical steps

# The ends of the two bands of the spectrum, equally long: mu_1, L_1, mu_2, L_2.
SPECTRA = [(1, 21, 80, 100), (1, 11, 90, 100), (1, 2, 99, 100), (0.1, 30, 70.1, 100)]


def convergence_rate(eigenvalues, lr, momentum, policy):
    """By which factor the distance to the minimum of a quadratic with these eigenvalues shrinks with each step."""
    param = torch.nn.Parameter(torch.ones(len(eigenvalues), dtype=torch.float64))
    optimizer = CyclicSGD([param], lr=lr, momentum=momentum, policy=policy)
    distances = []
    for _ in range(600):
        param.grad = eigenvalues * param.detach()
        optimizer.step()
        distances.append(param.detach().abs().max().item())
    return (distances[599] / distances[299]) ** (1 / 300)


def between_bands(mu_1, ell_1, mu_2, ell_2):
    """The square root of the best momentum: the rate at which alternating steps converge. It solves
    (1 + m)^2 / 4m = L_1 mu_2 / (L_1 - mu_1)(mu_2 - mu_1)."""
    quotient = ell_1 * mu_2 / ((ell_1 - mu_1) * (mu_2 - mu_1))
    return math.sqrt(quotient) - math.sqrt(quotient - 1)


def heavy_ball(mu, ell):
    """Polyak's rate, the best for a spectrum of which nothing but the ends is known."""
    root = math.sqrt(ell / mu)
    return (root - 1) / (root + 1)


@pytest.mark.parametrize(("mu_1", "ell_1", "mu_2", "ell_2"), SPECTRA)
def test_alternating_steps_are_faster_where_the_spectrum_has_a_gap(mu_1, ell_1, mu_2, ell_2):
    """Cyclical steps, abstract and equation (3): with eigenvalues in two bands, steps that alternate between
    (1 + m) / L_1 and (1 + m) / mu_2 converge faster than the best constant step and momentum. A triangle with legs of
    one step alternates. (SGD multiplies its whole buffer by the step, the paper's heavy ball only the gradient: over
    two steps both have the same trace and determinant, hence the same rate.)"""
    bands = torch.linspace(mu_1, ell_1, 40), torch.linspace(mu_2, ell_2, 40)
    eigenvalues = torch.cat(bands).double()
    root = between_bands(mu_1, ell_1, mu_2, ell_2)
    alternating = Triangular(step_size_up=1, step_size_down=1, div_factor=mu_2 / ell_1, cycle_momentum=False)
    cyclical = convergence_rate(eigenvalues, (1 + root**2) / ell_1, root**2, alternating)
    best = heavy_ball(mu_1, ell_2)
    constant = convergence_rate(eigenvalues, (1 + best) ** 2 / ell_2, best**2, Constant())
    # Double roots at the ends of a band add a factor that grows like the number of steps.
    assert cyclical == pytest.approx(root, rel=3e-3)
    assert constant == pytest.approx(best, rel=3e-3)
    assert cyclical < constant


@pytest.mark.parametrize("ell", [10, 1000])
def test_without_a_gap_alternating_steps_bring_nothing(ell):
    """The same formula without a gap: the two steps are one, and the rate is Polyak's."""
    middle = (1 + ell) / 2
    assert between_bands(1, middle, middle, ell) == close(heavy_ball(1, ell))


# -- general cyclical training


@pytest.mark.parametrize("factor", [2, 4])
def test_weight_decay_cycles_once_in_a_training(factor):
    """General cyclical training, its code (TIMM/train.py) with the bounds that its README gives, 1e-5 and 8e-5, in 200
    epochs and one to cool down: weight decay climbs to its highest value in a ``factor``-th of the epochs and falls
    back to the lowest in the rest, while the rate follows a cosine."""
    epochs, batches, low, high = 201, 3, 1e-5, 8e-5

    def by_the_code(epoch):
        if factor * epoch < epochs:
            eta = 1 - factor * epoch / (epochs - 1)
        else:
            eta = (factor * epoch / (epochs - 1) - 1) / (factor - 1)
        return (1 - eta) * high + eta * low

    up = (epochs - 1) // factor
    triangle = Triangular(up, epochs - 1 - up, div_factor=high / low, cycle_momentum=False)
    policy = Combined(lr=CosineDecay(epochs * batches), weight_decay=Staircase(triangle, batches))
    param = torch.nn.Parameter(torch.zeros(1))
    param.grad = torch.zeros(1)
    optimizer = CyclicSGD([param], lr=0.15, momentum=0.9, weight_decay=high, policy=policy)
    for step in range(epochs * batches):
        assert optimizer.param_groups[0]["weight_decay"] == close(by_the_code(step // batches))
        optimizer.step()
