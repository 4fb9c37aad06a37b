/* What a step does for every tensor and every param group, as far as they are ordinary ones.

   Python asks a tensor anything in some 50 ns, and there is much to ask on every step, as users may do anything to
   their tensors in between: a step from Python costs more than the update, or remembers answers that may have gone
   stale. From here it is cheap enough to remember nothing.

   Whatever is not ordinary is left to Python, which decides everything by itself where this is not there.

   Tensors are read through DLPack's C exchange API (dmlc/dlpack, include/dlpack/dlpack.h), which torch offers from
   version 2.10 on, so that no header of torch is needed to build this and no version of it is built in. The
   few declarations below are that interface's. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

/* -- DLPack ------------------------------------------------------------------------------------------------ */

enum { CPU = 1, CUDA = 2, ROCM = 10 };
enum { FLOAT = 2, BFLOAT = 4 };

typedef struct {
    void *data;
    int32_t device_type;
    int32_t device_id;
    int32_t ndim;
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
    int64_t *shape;
    int64_t *strides;
    uint64_t byte_offset;
} DLTensor;

typedef struct {
    uint32_t major;
    uint32_t minor;
    void *previous;
    void *allocate;
    void *managed_from_object;
    void *managed_to_object;
    int (*describe)(void *object, DLTensor *tensor);
    void *current_stream;
} ExchangeAPI;

/* -- the arithmetic ---------------------------------------------------------------------------------------- */

typedef struct {
    double lr, momentum, dampening, weight_decay;
    int nesterov, maximize;
} Hyper;

typedef struct {
    void *param, *grad, *buffer; /* buffer: NULL without momentum */
    int64_t numel;
    int bits;
    Hyper hyper;
    PyObject *owned_grad, *owned_buffer; /* another thread may drop them while this one computes */
} Job;

/* The widest vectors that the machine at hand has, chosen when this is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define EACH_MACHINE __attribute__((target_clones("avx512f", "avx2", "default")))
#define INLINE static inline __attribute__((always_inline))
#else
#define EACH_MACHINE
#define INLINE static inline
#endif

/* torch's order of operations, each rounded, which gives the same bits on every machine. (torch's own ops contract some
   to fused multiply-adds, which ones depends on the machine.) The loop is compiled once for each combination of the
   constants. */
#define DEFINE_UPDATE(REAL)                                                                             \
    INLINE void loop_##REAL(const Job *job, const int decays, const int has_momentum, const int nesterov) \
    {                                                                                                   \
        const Hyper *hyper = &job->hyper;                                                               \
        const REAL lr = (REAL)hyper->lr, momentum = (REAL)hyper->momentum;                              \
        const REAL kept = (REAL)(1 - hyper->dampening), weight_decay = (REAL)hyper->weight_decay;       \
        const REAL sign = hyper->maximize ? -1 : 1;                                                     \
        REAL *param = job->param, *buffer = job->buffer;                                                \
        const REAL *grad = job->grad;                                                                   \
        for (int64_t i = 0; i < job->numel; i++) {                                                      \
            REAL change = sign * grad[i];                                                               \
            if (decays)                                                                                 \
                change = change + param[i] * weight_decay;                                              \
            if (has_momentum) {                                                                         \
                const REAL moved = buffer[i] * momentum + change * kept;                                \
                buffer[i] = moved;                                                                      \
                change = nesterov ? change + moved * momentum : moved;                                  \
            }                                                                                           \
            param[i] = param[i] - change * lr;                                                          \
        }                                                                                               \
    }                                                                                                   \
    EACH_MACHINE                                                                                        \
    static void update_##REAL(const Job *job)                                                           \
    {                                                                                                   \
        const int decays = job->hyper.weight_decay != 0;                                                \
        if (job->buffer == NULL)                                                                        \
            decays ? loop_##REAL(job, 1, 0, 0) : loop_##REAL(job, 0, 0, 0);                             \
        else if (job->hyper.nesterov)                                                                   \
            decays ? loop_##REAL(job, 1, 1, 1) : loop_##REAL(job, 0, 1, 1);                             \
        else                                                                                            \
            decays ? loop_##REAL(job, 1, 1, 0) : loop_##REAL(job, 0, 1, 0);                             \
    }

DEFINE_UPDATE(float)
DEFINE_UPDATE(double)

/* -- what a tensor is ---------------------------------------------------------------------------------------- */

static struct {
    const ExchangeAPI *api;
    PyTypeObject *tensor, *parameter;
    PyObject *is_neg;
    const PyGetSetDef *grad;
    Py_ssize_t impl, keys; /* where an object points to its tensor, and where that keeps its dispatch keys, in bytes */
    uint64_t negative;     /* the key of a negated view; 0: not known, so is_neg is called */
} torch;

static struct {
    PyObject *params, *lr, *momentum, *dampening, *weight_decay, *nesterov, *maximize, *max_lr, *schedule_step;
    PyObject *foreach, *differentiable, *fused, *momentum_buffer, *grad;
} name;

/* Whether it is a lazily negated view, whose sign DLPack does not tell. Being asked this by is_neg, which lets go of
   the interpreter's lock and takes it again, costs as much as all else that a small tensor's update takes. */
static int is_negated(PyObject *tensor)
{
    if (torch.negative) {
        const char *impl = *(const char *const *)((const char *)tensor + torch.impl);
        return impl == NULL || (*(const uint64_t *)(impl + torch.keys) & torch.negative) != 0;
    }
    PyObject *negated = PyObject_Vectorcall(torch.is_neg, &tensor, 1, NULL);
    Py_XDECREF(negated); /* True and False are immortal */
    PyErr_Clear();
    return negated != Py_False;
}

static int is_known(PyObject *object)
{
    return Py_TYPE(object) == torch.tensor || Py_TYPE(object) == torch.parameter;
}

/* A new reference. Where the type is known, so is where looking the attribute up would lead. */
static PyObject *grad_of(PyObject *param)
{
    return is_known(param) ? torch.grad->get(param, torch.grad->closure) : PyObject_GetAttr(param, name.grad);
}

/* Whether a tensor can be read as plain memory. Subclasses have a mind of their own, and what DLPack cannot describe
   (sparse, quantized, without storage) is nothing of ours. */
static int is_plain(PyObject *object, DLTensor *seen)
{
    if (!is_known(object) || is_negated(object))
        return 0;
    if (torch.api->describe(object, seen) != 0) {
        PyErr_Clear();
        return 0;
    }
    return seen->lanes == 1 && (seen->strides != NULL || seen->ndim == 0);
}

static int64_t numel_of(const DLTensor *tensor)
{
    int64_t numel = 1;
    for (int i = 0; i < tensor->ndim; i++)
        numel *= tensor->shape[i];
    return numel;
}

static char *data_of(const DLTensor *tensor)
{
    return (char *)tensor->data + tensor->byte_offset;
}

/* Whether the elements fill a stretch of memory, each once, in whatever order of dimensions. */
static int is_dense(const DLTensor *tensor)
{
    int64_t expected = 1;
    unsigned left = 0;
    if (tensor->ndim > 16)
        return 0;
    for (int i = 0; i < tensor->ndim; i++)
        left |= (unsigned)(tensor->shape[i] != 1) << i;
    while (left) {
        int next = tensor->ndim - 1; /* from the last on, as most are laid out */
        while (next >= 0 && !(left >> next & 1 && tensor->strides[next] == expected))
            next--;
        if (next < 0)
            return 0;
        expected *= tensor->shape[next];
        left &= ~(1u << next);
    }
    return 1;
}

static int is_like(const DLTensor *one, const DLTensor *other)
{
    if (one->device_type != other->device_type || one->device_id != other->device_id || one->code != other->code ||
        one->bits != other->bits || one->ndim != other->ndim)
        return 0;
    for (int i = 0; i < one->ndim; i++)
        if (one->shape[i] != other->shape[i] || (one->shape[i] != 1 && one->strides[i] != other->strides[i]))
            return 0; /* the stride of a dimension of size 1 means nothing */
    return 1;
}

/* -- a step ---------------------------------------------------------------------------------------------------- */

/* Tensors of one group, dtype and device that torch's op is to update in one call, on one thread if they are small. */
typedef struct {
    Py_ssize_t group;
    int is_small;
    DLTensor like;
    PyObject *lists[3]; /* parameters, gradients, buffers */
} Call;

typedef struct {
    PyObject *state;
    Py_ssize_t next_state; /* states usually come in the order of the parameters: no need to look up by hash */
    int64_t small; /* tensors of fewer elements are small */
    int by_op;     /* leave these to the op, too */
    Job *jobs;
    Py_ssize_t n_jobs, room_for_jobs;
    Call *calls;
    Py_ssize_t n_calls, room_for_calls;
    PyObject *done, *rest;
} Step;

static int make_room(void **array, Py_ssize_t n, Py_ssize_t *room, size_t size)
{
    if (n < *room)
        return 0;
    const Py_ssize_t more = *room ? 2 * *room : 64;
    void *grown = PyMem_Realloc(*array, more * size);
    if (grown == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    *array = grown;
    *room = more;
    return 0;
}

/* NULL where there is none, or with an error set. */
static PyObject *buffer_of(Step *step, PyObject *param)
{
    PyObject *owner, *kept;
    Py_ssize_t after = step->next_state;
    if (PyDict_Next(step->state, &after, &owner, &kept) && owner == param)
        step->next_state = after;
    else
        kept = PyDict_GetItemWithError(step->state, param);
    return kept == NULL || !PyDict_Check(kept) ? NULL : Py_XNewRef(PyDict_GetItemWithError(kept, name.momentum_buffer));
}

static int add_to_call(Step *step, Py_ssize_t group, int is_small, const DLTensor *like, PyObject *const tensors[3])
{
    Call *call = NULL;
    for (Py_ssize_t i = step->n_calls; i-- > 0 && step->calls[i].group == group;) {
        const DLTensor *other = &step->calls[i].like;
        if (step->calls[i].is_small == is_small && other->device_type == like->device_type &&
            other->device_id == like->device_id && other->code == like->code && other->bits == like->bits)
            call = &step->calls[i];
    }
    if (call == NULL) {
        if (make_room((void **)&step->calls, step->n_calls, &step->room_for_calls, sizeof(Call)) < 0)
            return -1;
        call = &step->calls[step->n_calls++];
        *call = (Call){.group = group, .is_small = is_small, .like = *like};
        for (int i = 0; i < 3; i++)
            if ((call->lists[i] = PyList_New(0)) == NULL)
                return -1;
    }
    for (int i = 0; i < 3; i++)
        if (tensors[i] != NULL && PyList_Append(call->lists[i], tensors[i]) < 0)
            return -1;
    return 0;
}

/* 1: seen to; 0: for the caller to do; -1: an error. */
static int visit_tensors(Step *step, Py_ssize_t group, const Hyper *hyper, PyObject *param, PyObject *grad,
                         PyObject *buffer)
{
    DLTensor seen[3];
    if (!is_plain(param, &seen[0]) || !is_plain(grad, &seen[1]) || !is_like(&seen[0], &seen[1]))
        return 0;
    if (hyper->momentum == 0)
        buffer = NULL; /* kept as it is */
    else if (buffer == NULL || !is_plain(buffer, &seen[2]) || !is_like(&seen[0], &seen[2]))
        return 0;
    const int64_t numel = numel_of(&seen[0]);
    if (numel == 0)
        return 1;
    const int on_gpu = seen[0].device_type == CUDA || seen[0].device_type == ROCM;
    const int is_float = seen[0].code == FLOAT && (seen[0].bits == 32 || seen[0].bits == 64);
    const int is_half = (seen[0].code == FLOAT || seen[0].code == BFLOAT) && seen[0].bits == 16;
    if (!(is_float && seen[0].device_type == CPU) && !((is_float || is_half) && on_gpu))
        return 0;
    for (int i = 0; i < (buffer ? 3 : 2); i++)
        if (seen[i].data == NULL || (uintptr_t)data_of(&seen[i]) % (seen[i].bits / 8) != 0)
            return 0; /* zeros without memory, or memory of another dtype */
    if (!is_dense(&seen[0]))
        return 0;
    const int is_small = !on_gpu && numel < step->small;
    if (!is_small || step->by_op) {
        PyObject *const tensors[3] = {param, grad, buffer};
        return add_to_call(step, group, is_small, &seen[0], tensors) < 0 ? -1 : 1;
    }
    if (make_room((void **)&step->jobs, step->n_jobs, &step->room_for_jobs, sizeof(Job)) < 0 ||
        PyList_Append(step->done, param) < 0)
        return -1;
    Py_INCREF(grad);
    Py_XINCREF(buffer);
    step->jobs[step->n_jobs++] = (Job){
        .param = data_of(&seen[0]),
        .grad = data_of(&seen[1]),
        .buffer = buffer ? data_of(&seen[2]) : NULL,
        .numel = numel,
        .bits = seen[0].bits,
        .hyper = *hyper,
        .owned_grad = grad,
        .owned_buffer = buffer,
    };
    return 1;
}

static int visit_param(Step *step, Py_ssize_t group, const Hyper *hyper, PyObject *param, PyObject *grad)
{
    PyObject *buffer = buffer_of(step, param);
    const int seen_to = PyErr_Occurred()  ? -1
                        : grad == Py_None ? 1
                                          : visit_tensors(step, group, hyper, param, grad, buffer);
    Py_XDECREF(buffer);
    return seen_to;
}

static int add_to_rest(Step *step, Py_ssize_t group, PyObject *params)
{
    PyObject *row = params == NULL ? NULL : Py_BuildValue("nO", group, params);
    const int failed = row == NULL || PyList_Append(step->rest, row) < 0;
    Py_XDECREF(row);
    return failed ? -1 : 0;
}

static int read_number(PyObject *group, PyObject *key, double *number)
{
    PyObject *value = PyDict_GetItemWithError(group, key);
    if (value == NULL || !(PyFloat_CheckExact(value) || PyLong_CheckExact(value)))
        return 0;
    *number = PyFloat_AsDouble(value);
    return !PyErr_Occurred();
}

static int read_flag(PyObject *group, PyObject *key, int *flag)
{
    PyObject *value = PyDict_GetItemWithError(group, key);
    *flag = value == Py_True;
    return value == Py_True || value == Py_False;
}

static int is_at_default(PyObject *group, PyObject *key, PyObject *one, PyObject *other)
{
    PyObject *value = PyDict_GetItemWithError(group, key);
    return value == one || value == other;
}

/* Whether the group's numbers are plain ones (no tensors) and its flags ask for no other implementation. */
static int read_hyper(PyObject *group, Hyper *hyper)
{
    const int usual =
        read_number(group, name.lr, &hyper->lr) && read_number(group, name.momentum, &hyper->momentum) &&
        read_number(group, name.dampening, &hyper->dampening) &&
        read_number(group, name.weight_decay, &hyper->weight_decay) &&
        read_flag(group, name.nesterov, &hyper->nesterov) && read_flag(group, name.maximize, &hyper->maximize) &&
        is_at_default(group, name.foreach, Py_None, Py_None) &&
        is_at_default(group, name.differentiable, Py_False, Py_False) &&
        is_at_default(group, name.fused, Py_None, Py_True);
    PyErr_Clear(); /* an int beyond floats: no plain number */
    return usual;
}

/* To ask a parameter for its gradient may run Python code, which may do anything to the groups: all is owned. */
static int visit_params(Step *step, Py_ssize_t index, const Hyper *hyper, PyObject *params)
{
    PyObject *left = NULL;
    int status = 0;
    for (Py_ssize_t i = 0; status == 0 && i < PySequence_Fast_GET_SIZE(params); i++) {
        PyObject *param = Py_NewRef(PySequence_Fast_GET_ITEM(params, i));
        PyObject *grad = grad_of(param);
        const int seen_to = grad == NULL ? -1 : visit_param(step, index, hyper, param, grad);
        if (seen_to == 0 && left == NULL)
            left = PyList_New(0);
        if (seen_to < 0 || (seen_to == 0 && (left == NULL || PyList_Append(left, param) < 0)))
            status = -1;
        Py_XDECREF(grad);
        Py_DECREF(param);
    }
    if (status == 0 && left != NULL)
        status = add_to_rest(step, index, left);
    Py_XDECREF(left);
    return status;
}

static int visit_group(Step *step, Py_ssize_t index, PyObject *group)
{
    Hyper hyper;
    PyObject *given = PyObject_GetItem(group, name.params);
    PyObject *params =
        given == NULL ? NULL : PySequence_Fast(given, "need param groups that are dicts with a list 'params'");
    int status = -1;
    if (params != NULL && PyDict_Check(group) && PyDict_Check(step->state) && read_hyper(group, &hyper))
        status = visit_params(step, index, &hyper, params);
    else if (params != NULL)
        status = PySequence_Fast_GET_SIZE(params) == 0 ? 0 : add_to_rest(step, index, params);
    Py_XDECREF(params);
    Py_XDECREF(given);
    return status;
}

static PyObject *calls_of(const Step *step)
{
    PyObject *calls = PyList_New(step->n_calls);
    for (Py_ssize_t i = 0; calls != NULL && i < step->n_calls; i++) {
        PyObject *const *lists = step->calls[i].lists;
        PyObject *row = Py_BuildValue("nNOOO", step->calls[i].group, PyBool_FromLong(step->calls[i].is_small),
                                      lists[0], lists[1], lists[2]);
        if (row == NULL)
            Py_CLEAR(calls);
        else
            PyList_SET_ITEM(calls, i, row);
    }
    return calls;
}

static void run_jobs(const Step *step)
{
    for (Py_ssize_t i = 0; i < step->n_jobs; i++)
        step->jobs[i].bits == 32 ? update_float(&step->jobs[i]) : update_double(&step->jobs[i]);
}

static void release(Step *step)
{
    for (Py_ssize_t i = 0; i < step->n_jobs; i++) {
        Py_DECREF(step->jobs[i].owned_grad);
        Py_XDECREF(step->jobs[i].owned_buffer);
    }
    for (Py_ssize_t i = 0; i < step->n_calls; i++)
        for (int j = 0; j < 3; j++)
            Py_XDECREF(step->calls[i].lists[j]);
    PyMem_Free(step->jobs);
    PyMem_Free(step->calls);
    Py_XDECREF(step->done);
    Py_XDECREF(step->rest);
}

PyDoc_STRVAR(
    update_doc,
    "update(param_groups, state, small, by_op) -> (done, calls, rest)\n\n"
    "Update every ordinary parameter on the CPU that has a gradient and fewer than ``small`` elements, unless\n"
    "``by_op``. Returned are these parameters; rows (group, is_small, params, grads, buffers), each right for one call\n"
    "of torch's fused op; and rows (group, params) of all that need a closer look: no plain strided memory, no\n"
    "momentum buffer yet, unlike layouts, a group with unusual flags, groups or state of other types than torch's.\n"
    "Nothing is updated if anything raises.");

static PyObject *update(PyObject *module, PyObject *const *args, Py_ssize_t n_args)
{
    if (n_args != 4 || torch.api == NULL) {
        PyErr_SetString(PyExc_TypeError, "need use() once, then update(param_groups, state, small, by_op)");
        return NULL;
    }
    Step step = {.state = args[1], .small = PyLong_AsLongLong(args[2]), .by_op = args[3] == Py_True};
    if (PyErr_Occurred())
        return NULL;
    PyObject *groups = PySequence_Fast(args[0], "need param_groups to be a list"), *found = NULL;
    step.done = PyList_New(0);
    step.rest = PyList_New(0);
    int status = groups == NULL || step.done == NULL || step.rest == NULL ? -1 : 0;
    for (Py_ssize_t i = 0; status == 0 && i < PySequence_Fast_GET_SIZE(groups); i++) {
        PyObject *group = Py_NewRef(PySequence_Fast_GET_ITEM(groups, i));
        status = visit_group(&step, i, group);
        Py_DECREF(group);
    }
    PyObject *calls = status == 0 ? calls_of(&step) : NULL;
    if (calls != NULL && (found = PyTuple_Pack(3, step.done, calls, step.rest)) != NULL) {
        /* Only now, when nothing can fail any more. */
        int64_t elements = 0;
        for (Py_ssize_t i = 0; i < step.n_jobs; i++)
            elements += step.jobs[i].numel;
        PyThreadState *others = elements < 1 << 16 ? NULL : PyEval_SaveThread();
        run_jobs(&step);
        if (others != NULL)
            PyEval_RestoreThread(others);
    }
    Py_XDECREF(calls);
    Py_XDECREF(groups);
    release(&step);
    return found;
}

/* -- the schedule ---------------------------------------------------------------------------------------------- */

/* Whether a number is a plain finite float >= 0; NaN is none. */
static int is_ordinary_number(PyObject *number)
{
    return number != NULL && PyFloat_CheckExact(number) && PyFloat_AS_DOUBLE(number) >= 0 &&
           PyFloat_AS_DOUBLE(number) < Py_HUGE_VAL;
}

/* What every floating-point dtype can hold: for higher rates Python looks at the parameters. */
#define HELD_BY_ALL 65504.0

/* Whether all groups hold their rates as plain floats, and what a policy said gives them valid ones. */
static int are_ordinary(PyObject *groups, PyObject *lr_factor, PyObject *momentum)
{
    if (!PyList_Check(groups) || !is_ordinary_number(lr_factor) ||
        !(momentum == Py_None || is_ordinary_number(momentum)))
        return 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(groups); i++) {
        PyObject *group = PyList_GET_ITEM(groups, i);
        PyObject *peak = PyDict_Check(group) ? PyDict_GetItemWithError(group, name.max_lr) : NULL;
        PyObject *lr = peak == NULL ? NULL : PyDict_GetItemWithError(group, name.lr);
        if (!is_ordinary_number(peak) || lr == NULL || !PyFloat_CheckExact(lr) ||
            PyFloat_AS_DOUBLE(peak) * PyFloat_AS_DOUBLE(lr_factor) > HELD_BY_ALL)
            return 0;
    }
    return 1;
}

PyDoc_STRVAR(check_doc, "check(param_groups, values) -> whether write() can put this answer of a policy in force");

static PyObject *check(PyObject *module, PyObject *const *args, Py_ssize_t n_args)
{
    if (n_args != 2) {
        PyErr_SetString(PyExc_TypeError, "need check(param_groups, values)");
        return NULL;
    }
    const int ordinary = PyTuple_Check(args[1]) && PyTuple_GET_SIZE(args[1]) == 2 &&
                         are_ordinary(args[0], PyTuple_GET_ITEM(args[1], 0), PyTuple_GET_ITEM(args[1], 1));
    return PyErr_Occurred() ? NULL : PyBool_FromLong(ordinary);
}

PyDoc_STRVAR(write_doc,
             "write(param_groups, schedule_step, lr_factor, momentum) -> bool\n\n"
             "Put a step's values in force, momentum unless it is None; False, and nothing written, where a group's\n"
             "rates are no plain floats. No interrupt comes in between.");

static PyObject *write_values(PyObject *module, PyObject *const *args, Py_ssize_t n_args)
{
    if (n_args != 4) {
        PyErr_SetString(PyExc_TypeError, "need write(param_groups, schedule_step, lr_factor, momentum)");
        return NULL;
    }
    PyObject *groups = args[0], *step = args[1], *lr_factor = args[2], *momentum = args[3];
    if (!are_ordinary(groups, lr_factor, momentum))
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_False);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(groups); i++) {
        PyObject *group = PyList_GET_ITEM(groups, i);
        const double peak = PyFloat_AS_DOUBLE(PyDict_GetItemWithError(group, name.max_lr));
        PyObject *lr = PyFloat_FromDouble(peak * PyFloat_AS_DOUBLE(lr_factor));
        const int failed = lr == NULL || PyDict_SetItem(group, name.schedule_step, step) < 0 ||
                           PyDict_SetItem(group, name.lr, lr) < 0 ||
                           (momentum != Py_None && PyDict_SetItem(group, name.momentum, momentum) < 0);
        Py_XDECREF(lr);
        if (failed)
            return NULL;
    }
    return Py_NewRef(Py_True);
}

/* -- the module ------------------------------------------------------------------------------------------------ */

PyDoc_STRVAR(use_doc,
             "use(exchange_api, tensor_type, parameter_type, is_neg, grad, impl, keys, negative)\n\n"
             "What of torch to work with: ``torch.Tensor.__dlpack_c_exchange_api__``, two types, a method, a\n"
             "descriptor, and where a tensor keeps what that method tells (negative=0: nowhere known).");

static PyObject *use(PyObject *module, PyObject *const *args, Py_ssize_t n_args)
{
    if (n_args != 8 || !PyType_Check(args[1]) || !PyType_Check(args[2]) || Py_TYPE(args[4]) != &PyGetSetDescr_Type) {
        PyErr_SetString(PyExc_TypeError, "need a capsule, two types, a method, an attribute of C and three numbers");
        return NULL;
    }
    const Py_ssize_t impl = PyLong_AsSsize_t(args[5]), keys = PyLong_AsSsize_t(args[6]);
    const uint64_t negative = PyLong_AsUnsignedLongLong(args[7]);
    if (PyErr_Occurred())
        return NULL;
    const ExchangeAPI *api = PyCapsule_GetPointer(args[0], "dlpack_exchange_api");
    if (api == NULL)
        return NULL;
    if (api->major != 1) { /* another layout of these structures */
        PyErr_Format(PyExc_ImportError, "need DLPack 1.x, got %u.%u", api->major, api->minor);
        return NULL;
    }
    Py_XSETREF(torch.tensor, (PyTypeObject *)Py_NewRef(args[1]));
    Py_XSETREF(torch.parameter, (PyTypeObject *)Py_NewRef(args[2]));
    Py_XSETREF(torch.is_neg, Py_NewRef(args[3]));
    torch.grad = ((PyGetSetDescrObject *)Py_NewRef(args[4]))->d_getset; /* of a type that lives as long as torch */
    torch.impl = impl;
    torch.keys = keys;
    torch.negative = negative;
    torch.api = api;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"update", (PyCFunction)(void (*)(void))update, METH_FASTCALL, update_doc},
    {"check", (PyCFunction)(void (*)(void))check, METH_FASTCALL, check_doc},
    {"write", (PyCFunction)(void (*)(void))write_values, METH_FASTCALL, write_doc},
    {"use", (PyCFunction)(void (*)(void))use, METH_FASTCALL, use_doc},
    {NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = -1, .m_methods = methods
};

PyMODINIT_FUNC PyInit__native(void)
{
    const struct {
        PyObject **where;
        const char *text;
    } names[] = {
        {&name.params, "params"},
        {&name.lr, "lr"},
        {&name.momentum, "momentum"},
        {&name.dampening, "dampening"},
        {&name.weight_decay, "weight_decay"},
        {&name.nesterov, "nesterov"},
        {&name.maximize, "maximize"},
        {&name.max_lr, "max_lr"},
        {&name.schedule_step, "schedule_step"},
        {&name.foreach, "foreach"},
        {&name.differentiable, "differentiable"},
        {&name.fused, "fused"},
        {&name.momentum_buffer, "momentum_buffer"},
        {&name.grad, "grad"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if ((*names[i].where = PyUnicode_InternFromString(names[i].text)) == NULL)
            return NULL;
    return PyModule_Create(&module);
}
