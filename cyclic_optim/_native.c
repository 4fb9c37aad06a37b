/* The part of a step that runs for every tensor and every param group, for the ordinary ones.

   Users may change their tensors in any way between two steps, so a step has to read each of them again. One
   attribute of a tensor costs about 50 ns in Python: reading them all would take longer than the update, and caching
   them would risk stale values. In C reading is cheap enough that nothing is cached.

   Everything that is not ordinary is left to Python. Python also does the whole step where this module is missing.

   Tensors are read through DLPack's C exchange API (dmlc/dlpack, include/dlpack/dlpack.h), which torch has since
   version 2.10. So building needs no header of torch, and one build works with every version. The declarations below
   are copied from that interface. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

/* -- DLPack ----------------------------------------------------------------------------------------------------- */

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

/* -- the arithmetic --------------------------------------------------------------------------------------------- */

typedef struct {
    double lr, momentum, dampening, weight_decay;
    int nesterov, maximize;
    int usual; /* and no flag selects another implementation */
} Hyper;

typedef struct {
    void *param, *grad, *buffer; /* buffer: NULL without momentum */
    int64_t numel;
    int bits;
    const Hyper *hyper;
} Job;

/* The widest vectors of the machine, chosen when this module is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define EACH_MACHINE __attribute__((target_clones("avx512f", "avx2", "default")))
#define INLINE static inline __attribute__((always_inline))
#else
#define EACH_MACHINE
#define INLINE static inline
#endif

/* torch's order of operations. Each operation is rounded by itself, so every machine gives the same bits. (torch's own
   ops contract some operations to fused multiply-adds; which ones depends on the machine.) The loop is compiled once
   for each combination of the constants. */
#define DEFINE_UPDATE(REAL)                                                                             \
    INLINE void loop_##REAL(const Job *job, const int decays, const int has_momentum, const int nesterov) \
    {                                                                                                   \
        const Hyper *hyper = job->hyper;                                                                \
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
        const int decays = job->hyper->weight_decay != 0;                                               \
        if (job->buffer == NULL)                                                                        \
            decays ? loop_##REAL(job, 1, 0, 0) : loop_##REAL(job, 0, 0, 0);                             \
        else if (job->hyper->nesterov)                                                                  \
            decays ? loop_##REAL(job, 1, 1, 1) : loop_##REAL(job, 0, 1, 1);                             \
        else                                                                                            \
            decays ? loop_##REAL(job, 1, 1, 0) : loop_##REAL(job, 0, 1, 0);                             \
    }

DEFINE_UPDATE(float)
DEFINE_UPDATE(double)

/* -- reading tensors -------------------------------------------------------------------------------------------- */

static struct {
    const ExchangeAPI *api;
    PyTypeObject *tensor, *parameter;
    PyObject *is_neg;
    const PyGetSetDef *grad;
    Py_ssize_t impl, keys; /* byte offsets: of the TensorImpl's address in the object, of the dispatch keys in that */
    uint64_t negative;     /* the dispatch key of a negated view; 0: unknown, so is_neg is called */
} torch;

static struct {
    PyObject *params, *lr, *momentum, *dampening, *weight_decay, *nesterov, *maximize;
    PyObject *foreach, *differentiable, *fused, *momentum_buffer, *grad;
    PyObject *of_sgd; /* the keys of its state, a tuple */
} name;

static int is_known(PyObject *object)
{
    return Py_TYPE(object) == torch.tensor || Py_TYPE(object) == torch.parameter;
}

/* A new reference. For known types the getter is called directly, without looking the attribute up. */
static PyObject *grad_of(PyObject *param)
{
    return is_known(param) ? torch.grad->get(param, torch.grad->closure) : PyObject_GetAttr(param, name.grad);
}

/* DLPack does not report a lazily negated view's sign. is_neg releases the GIL and takes it again, which costs as much
   as the rest of a small tensor's update; so the bit is read from memory where it is known. */
static int has_negative_bit(PyObject *tensor)
{
    if (!torch.negative)
        return 0; /* may_be_negated called is_neg */
    const char *impl = *(const char *const *)((const char *)tensor + torch.impl);
    return impl == NULL || (*(const uint64_t *)(impl + torch.keys) & torch.negative) != 0;
}

/* What is_neg returns, where the bit is unknown. It may run Python code, so it is called while gathering. */
static int may_be_negated(PyObject *tensor)
{
    if (torch.negative || tensor == NULL || !is_known(tensor))
        return 0;
    PyObject *negated = PyObject_Vectorcall(torch.is_neg, &tensor, 1, NULL);
    const int is_not = negated == Py_False;
    Py_XDECREF(negated);
    PyErr_Clear();
    return !is_not;
}

/* Whether a tensor can be read as plain memory. Subclasses may override anything; tensors that DLPack cannot describe
   (sparse, quantized, without storage) go to Python. */
static int is_plain(PyObject *object, DLTensor *seen)
{
    if (!is_known(object) || has_negative_bit(object))
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

/* Whether the elements fill a block of memory without gaps or overlaps, in any order of dimensions. */
static int is_dense(const DLTensor *tensor)
{
    int64_t expected = 1;
    unsigned left = 0;
    if (tensor->ndim > 16)
        return 0;
    for (int i = 0; i < tensor->ndim; i++)
        left |= (unsigned)(tensor->shape[i] != 1) << i;
    while (left) {
        int next = tensor->ndim - 1; /* from the last dimension, as most tensors are row-major */
        while (next >= 0 && !(left >> next & 1 && tensor->strides[next] == expected))
            next--;
        if (next < 0)
            return 0;
        expected *= tensor->shape[next];
        left &= ~(1u << next);
    }
    return 1;
}

static int is_same_type(const DLTensor *one, const DLTensor *other)
{
    return one->device_type == other->device_type && one->device_id == other->device_id && one->code == other->code &&
           one->bits == other->bits;
}

static int is_same_shape(const DLTensor *one, const DLTensor *other)
{
    int same = one->ndim == other->ndim;
    for (int i = 0; same && i < one->ndim; i++)
        same = one->shape[i] == other->shape[i];
    return same;
}

static int is_like(const DLTensor *one, const DLTensor *other)
{
    if (!is_same_type(one, other) || !is_same_shape(one, other))
        return 0;
    for (int i = 0; i < one->ndim; i++)
        if (one->shape[i] != 1 && one->strides[i] != other->strides[i])
            return 0; /* the stride of a dimension of size 1 has no meaning */
    return 1;
}

static int is_real(const DLTensor *tensor)
{
    return tensor->code == FLOAT && (tensor->bits == 32 || tensor->bits == 64);
}

static int is_half(const DLTensor *tensor)
{
    return (tensor->code == FLOAT || tensor->code == BFLOAT) && tensor->bits == 16;
}

/* False for a tensor of zeros without memory, and for a misaligned view of another dtype's memory. */
static int is_addressable(const DLTensor *tensor)
{
    return tensor->data != NULL && (uintptr_t)data_of(tensor) % (tensor->bits / 8) == 0;
}

/* -- gathering -------------------------------------------------------------------------------------------------- */

/* Reading a gradient, hashing a parameter, looking a key up and even allocating (a garbage collection, up to Python
   3.11) may run any Python code, which may give tensors read before other memory. So a step has two parts: first
   everything that can run Python code is done, and everything found is owned; then tensors are described and updated
   in one go in which no Python code can run. */

/* A parameter with a gradient; all are owned. */
typedef struct {
    Py_ssize_t group;
    PyObject *param, *grad, *state[2]; /* NULL where there is none */
    int left;                          /* to Python */
} Row;

typedef struct {
    PyObject *groups, *state, *keys; /* groups is owned; keys: of the state, at most as many as a row holds */
    Py_ssize_t next_state;
    Hyper *hypers; /* one for each group */
    Row *rows;
    Py_ssize_t n, room, room_for_hypers;
    int is_unusual; /* some group's numbers or flags are */
} Gathered;

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

/* The state at the cursor, which moves on, if it is this parameter's; else NULL. States mostly come in the order of the
   parameters. Finding one by its key runs Python code, the hash of a tensor. Borrowed. */
static PyObject *next_state_of(PyObject *state, Py_ssize_t *cursor, PyObject *param)
{
    PyObject *owner, *found;
    Py_ssize_t after = *cursor;
    if (!PyDict_Next(state, &after, &owner, &found) || owner != param)
        return NULL;
    *cursor = after;
    return found;
}

/* A new reference; NULL where there is none, or with an error set. */
static PyObject *state_of(Gathered *all, PyObject *param)
{
    PyObject *found = next_state_of(all->state, &all->next_state, param);
    return Py_XNewRef(found != NULL ? found : PyDict_GetItemWithError(all->state, param));
}

/* Also of what is left to Python: a subclass's hash may run any code, which must not happen after the update. */
static int gather_state(Gathered *all, Row *row)
{
    if (!PyDict_Check(all->state))
        return 0; /* then all is left to Python */
    PyObject *entries = state_of(all, row->param);
    if (entries != NULL && !PyDict_Check(entries))
        row->left = 1;
    else if (entries != NULL)
        for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(all->keys) && !PyErr_Occurred(); k++)
            row->state[k] = Py_XNewRef(PyDict_GetItemWithError(entries, PyTuple_GET_ITEM(all->keys, k)));
    Py_XDECREF(entries);
    return PyErr_Occurred() ? -1 : 0;
}

/* Takes the references to param and grad. */
static int gather_row(Gathered *all, Py_ssize_t group, PyObject *param, PyObject *grad)
{
    if (grad == NULL || make_room((void **)&all->rows, all->n, &all->room, sizeof(Row)) < 0) {
        Py_DECREF(param);
        Py_XDECREF(grad);
        return -1;
    }
    if (grad == Py_None) {
        if (PyDict_Check(all->state))
            next_state_of(all->state, &all->next_state, param);
        Py_DECREF(param);
        Py_DECREF(grad);
        return 0;
    }
    Row *row = &all->rows[all->n++];
    *row = (Row){.group = group, .param = param, .grad = grad};
    row->left = !all->hypers[group].usual || !is_known(param);
    return gather_state(all, row);
}

static int gather_params(Gathered *all, Py_ssize_t group, PyObject *params)
{
    int status = 0;
    for (Py_ssize_t i = 0; status == 0 && i < PySequence_Fast_GET_SIZE(params); i++) {
        PyObject *param = Py_NewRef(PySequence_Fast_GET_ITEM(params, i));
        status = gather_row(all, group, param, grad_of(param));
    }
    return status;
}

/* float16's largest number: larger ones may be more than some parameter can hold, which Python checks. */
static const double HELD_BY_ALL = 65504;

static int read_number(PyObject *group, PyObject *key, double *number)
{
    PyObject *value = PyDict_GetItemWithError(group, key);
    if (value != NULL && PyFloat_CheckExact(value))
        *number = PyFloat_AS_DOUBLE(value);
    else if (value != NULL && PyLong_CheckExact(value))
        *number = PyLong_AsDouble(value); /* -1 for an int that no float can hold */
    else
        return 0;
    return -HELD_BY_ALL <= *number && *number <= HELD_BY_ALL && !PyErr_Occurred();
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

/* Whether the group's numbers are floats and ints of usual size (no tensors), and its flags are bools. */
static int read_hyper(PyObject *group, Hyper *hyper)
{
    const int usual =
        read_number(group, name.lr, &hyper->lr) && read_number(group, name.momentum, &hyper->momentum) &&
        read_number(group, name.dampening, &hyper->dampening) &&
        read_number(group, name.weight_decay, &hyper->weight_decay) &&
        read_flag(group, name.nesterov, &hyper->nesterov) && read_flag(group, name.maximize, &hyper->maximize);
    PyErr_Clear();
    return usual;
}

/* Whether the group's flags select no other implementation. */
static int takes_fused(PyObject *group)
{
    const int fused = is_at_default(group, name.foreach, Py_None, Py_None) &&
                      is_at_default(group, name.differentiable, Py_False, Py_False) &&
                      is_at_default(group, name.fused, Py_None, Py_True);
    PyErr_Clear();
    return fused;
}

static int gather_group(Gathered *all, Py_ssize_t index, PyObject *group, int with_hyper)
{
    PyObject *given = PyObject_GetItem(group, name.params);
    PyObject *params =
        given == NULL ? NULL : PySequence_Fast(given, "need param groups that are dicts with a list 'params'");
    int status = params == NULL || make_room((void **)&all->hypers, index, &all->room_for_hypers, sizeof(Hyper)) < 0;
    if (status == 0) {
        Hyper *hyper = &all->hypers[index];
        *hyper = (Hyper){0};
        const int is_usual = PyDict_Check(group) && (!with_hyper || read_hyper(group, hyper));
        all->is_unusual |= PyDict_Check(group) && !is_usual;
        hyper->usual = is_usual && PyDict_Check(all->state) && (!with_hyper || takes_fused(group));
        status = gather_params(all, index, params);
    }
    Py_XDECREF(params);
    Py_XDECREF(given);
    return status ? -1 : 0;
}

/* Everything that a step needs and that may run Python code. */
static int gather(Gathered *all, PyObject *given, int with_hyper)
{
    PyObject *groups = all->groups = PySequence_Fast(given, "need param_groups to be a list");
    int status = groups == NULL ? -1 : 0;
    for (Py_ssize_t i = 0; status == 0 && i < PySequence_Fast_GET_SIZE(groups); i++) {
        PyObject *group = Py_NewRef(PySequence_Fast_GET_ITEM(groups, i));
        status = gather_group(all, i, group, with_hyper);
        Py_DECREF(group);
    }
    if (status < 0)
        return -1;
    for (Py_ssize_t i = 0; i < all->n; i++) { /* last: is_neg may run Python code */
        Row *row = &all->rows[i];
        for (int k = 0; k < 2; k++)
            row->left |= may_be_negated(row->state[k]);
        row->left |= all->is_unusual || may_be_negated(row->param) || may_be_negated(row->grad);
    }
    return 0;
}

static void release_gathered(Gathered *all)
{
    for (Py_ssize_t i = 0; i < all->n; i++) {
        Py_DECREF(all->rows[i].param);
        Py_DECREF(all->rows[i].grad);
        Py_XDECREF(all->rows[i].state[0]);
        Py_XDECREF(all->rows[i].state[1]);
    }
    PyMem_Free(all->rows);
    PyMem_Free(all->hypers);
    Py_XDECREF(all->groups);
}

/* -- the update on the CPU -------------------------------------------------------------------------------------- */

/* Tensors of one group, dtype and device: one call of torch's op updates them, on one thread if they are small. */
typedef struct {
    Py_ssize_t group;
    int is_small;
    DLTensor like;
    PyObject *lists[3]; /* parameters, gradients, buffers */
} Call;

typedef struct {
    int64_t small; /* tensors with fewer elements are small */
    int by_op;     /* small tensors go to torch's op, too */
    Job *jobs;
    Py_ssize_t n_jobs, room_for_jobs;
    Call *calls;
    Py_ssize_t n_calls, room_for_calls;
    PyObject *done, *rest;
} Step;

static int append_all(PyObject *const lists[3], PyObject *const tensors[3])
{
    for (int i = 0; i < 3; i++)
        if (tensors[i] != NULL && PyList_Append(lists[i], tensors[i]) < 0)
            return -1;
    return 0;
}

static int add_to_call(Step *step, Py_ssize_t group, int is_small, const DLTensor *like, PyObject *const tensors[3])
{
    Call *call = NULL;
    for (Py_ssize_t i = step->n_calls; i-- > 0 && step->calls[i].group == group;) {
        if (step->calls[i].is_small == is_small && is_same_type(&step->calls[i].like, like))
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
    return append_all(call->lists, tensors);
}

/* 1: added to a job or call; 0: left to Python; -1: an error. */
static int describe_row(Step *step, const Row *row, const Hyper *hyper)
{
    DLTensor seen[3];
    PyObject *buffer = row->state[0];
    if (row->left || !is_plain(row->param, &seen[0]) || !is_plain(row->grad, &seen[1]) || !is_like(&seen[0], &seen[1]))
        return 0;
    if (hyper->momentum == 0)
        buffer = NULL; /* without momentum an old buffer is left alone */
    else if (buffer == NULL || !is_plain(buffer, &seen[2]) || !is_like(&seen[0], &seen[2]))
        return 0;
    const int64_t numel = numel_of(&seen[0]);
    if (numel == 0)
        return 1;
    const int on_gpu = seen[0].device_type == CUDA || seen[0].device_type == ROCM;
    if (!(seen[0].device_type == CPU && is_real(&seen[0])) && !(on_gpu && (is_real(&seen[0]) || is_half(&seen[0]))))
        return 0;
    for (int i = 0; i < (buffer ? 3 : 2); i++)
        if (!is_addressable(&seen[i]))
            return 0;
    if (!is_dense(&seen[0]))
        return 0;
    const int is_small = !on_gpu && numel < step->small;
    if (!is_small || step->by_op) {
        PyObject *const tensors[3] = {row->param, row->grad, buffer};
        return add_to_call(step, row->group, is_small, &seen[0], tensors) < 0 ? -1 : 1;
    }
    if (make_room((void **)&step->jobs, step->n_jobs, &step->room_for_jobs, sizeof(Job)) < 0 ||
        PyList_Append(step->done, row->param) < 0)
        return -1;
    step->jobs[step->n_jobs++] = (Job){
        .param = data_of(&seen[0]),
        .grad = data_of(&seen[1]),
        .buffer = buffer ? data_of(&seen[2]) : NULL,
        .numel = numel,
        .bits = seen[0].bits,
        .hyper = hyper,
    };
    return 1;
}

/* Rows of one group come one after another, so the last row of the rest is this group's or of one before. */
static int add_to_rest(Step *step, const Row *row)
{
    const Py_ssize_t n = PyList_GET_SIZE(step->rest);
    PyObject *last = n ? PyList_GET_ITEM(step->rest, n - 1) : NULL;
    if (last == NULL || PyLong_AsSsize_t(PyTuple_GET_ITEM(last, 0)) != row->group) {
        last = Py_BuildValue("n[][]", row->group);
        const int failed = last == NULL || PyList_Append(step->rest, last) < 0;
        Py_XDECREF(last); /* the list has it */
        if (failed)
            return -1;
    }
    return PyList_Append(PyTuple_GET_ITEM(last, 1), row->param) < 0 ||
                   PyList_Append(PyTuple_GET_ITEM(last, 2), row->grad) < 0
               ? -1
               : 0;
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

static int describe_rows(Step *step, const Gathered *all)
{
    for (Py_ssize_t i = 0; i < all->n; i++) {
        const Row *row = &all->rows[i];
        const int handled = describe_row(step, row, &all->hypers[row->group]);
        if (handled < 0 || (handled == 0 && add_to_rest(step, row) < 0))
            return -1;
    }
    return 0;
}

/* No Python code runs in here: the caller has switched garbage collection off, and nothing that is released here is
   the last reference to an object of the user's. */
static PyObject *describe_and_compute(Step *step, const Gathered *all)
{
    PyObject *found = NULL;
    step->done = PyList_New(0);
    step->rest = PyList_New(0);
    if (step->done == NULL || step->rest == NULL || describe_rows(step, all) < 0)
        return NULL;
    PyObject *calls = calls_of(step);
    if (calls != NULL && (found = PyTuple_Pack(3, step->done, calls, step->rest)) != NULL)
        for (Py_ssize_t i = 0; i < step->n_jobs; i++) /* last, when nothing can fail any more */
            step->jobs[i].bits == 32 ? update_float(&step->jobs[i]) : update_double(&step->jobs[i]);
    Py_XDECREF(calls);
    return found;
}

static void release_step(Step *step)
{
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
    "``by_op``. Return these parameters; rows (group, is_small, params, grads, buffers), each for one call of torch's\n"
    "fused op; and rows (group, params, grads) of everything that is left to Python: no plain strided memory, no\n"
    "momentum buffer yet, layouts that differ, flags that select another implementation, groups or state of other\n"
    "types than torch's. All are left where some group has a number or a flag that is unusual: a tensor, a number\n"
    "beyond float16's largest, a flag that is no bool. Nothing is updated if anything raises. Gradients are read\n"
    "once, all before anything is updated.");

static PyObject *update(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n_args)
{
    if (n_args != 4 || torch.api == NULL) {
        PyErr_SetString(PyExc_TypeError, "need use() once, then update(param_groups, state, small, by_op)");
        return NULL;
    }
    Step step = {.small = PyLong_AsLongLong(args[2]), .by_op = args[3] == Py_True};
    if (PyErr_Occurred())
        return NULL;
    Gathered all = {.state = args[1], .keys = name.of_sgd};
    PyObject *found = NULL;
    if (gather(&all, args[0], 1) == 0) {
        const int collects = PyGC_Disable();
        found = describe_and_compute(&step, &all);
        if (collects)
            PyGC_Enable();
    }
    release_step(&step);
    release_gathered(&all);
    return found;
}

/* -- values in param groups ------------------------------------------------------------------------------------- */

/* The three arguments of holds and put: keys[k] and columns[k][i] belong to groups[i]. What is no list stands in the
   place of a list of it alone: one value for all groups. */
static PyObject *item_of(PyObject *column, Py_ssize_t i)
{
    if (!PyList_Check(column))
        return column;
    return i < PyList_GET_SIZE(column) ? PyList_GET_ITEM(column, i) : NULL;
}

static int need_type(int is_right, const char *rule, PyObject *got)
{
    if (!is_right)
        PyErr_Format(PyExc_TypeError, "need %s, got %.100s", rule, Py_TYPE(got)->tp_name);
    return is_right;
}

static int need_n(Py_ssize_t n, const char *name_of, Py_ssize_t expected)
{
    if (n != expected)
        PyErr_Format(PyExc_ValueError, "need %s, got %zd and %zd", name_of, n, expected);
    return n == expected;
}

/* Exact str only: the hash of a subclass may be Python code. */
static int are_keys(PyObject *keys)
{
    if (!need_type(PyTuple_Check(keys), "keys to be a tuple", keys))
        return 0;
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(keys); k++)
        if (!need_type(PyUnicode_CheckExact(PyTuple_GET_ITEM(keys, k)), "each key to be a str",
                       PyTuple_GET_ITEM(keys, k)))
            return 0;
    return 1;
}

static int are_keys_and_columns(PyObject *keys, PyObject *columns)
{
    return are_keys(keys) && need_type(PyTuple_Check(columns), "columns to be a tuple", columns) &&
           need_n(PyTuple_GET_SIZE(columns), "as many columns as keys", PyTuple_GET_SIZE(keys));
}

/* Whether an item of a column stands for this value; a weak reference stands for what it refers to. */
static int stands_for(PyObject *item, PyObject *value)
{
    if (item == NULL || !PyWeakref_CheckRefExact(item))
        return value == item;
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *referent = NULL;
    const int alive = PyWeakref_GetRef(item, &referent);
    const int is_value = alive > 0 && referent == value;
    Py_XDECREF(referent); /* the group owns the value, too */
    return is_value;
#else
    return PyWeakref_GET_OBJECT(item) == value;
#endif
}

/* 1 or 0; -1: an error. The group is owned, as comparing strange keys of a dict may run Python code. */
static int group_holds(PyObject *group, Py_ssize_t i, PyObject *keys, PyObject *columns)
{
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(keys); k++) {
        PyObject *value = PyDict_GetItemWithError(group, PyTuple_GET_ITEM(keys, k));
        if (value == NULL && PyErr_Occurred())
            return -1;
        PyObject *item = item_of(PyTuple_GET_ITEM(columns, k), i);
        if (value == NULL ? item != Py_Ellipsis : !stands_for(item, value) || item == Py_Ellipsis)
            return 0;
    }
    return 1;
}

static int have_n_items(PyObject *columns, Py_ssize_t n)
{
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(columns); k++) {
        PyObject *column = PyTuple_GET_ITEM(columns, k);
        if (PyList_Check(column) && PyList_GET_SIZE(column) != n)
            return 0;
    }
    return 1;
}

PyDoc_STRVAR(holds_doc,
             "holds(groups, keys, columns) -> bool\n\n"
             "Whether ``groups[i][keys[k]] is columns[k][i]`` everywhere; ``...`` in a column stands for an absent\n"
             "key, a weak reference for what it refers to, and no list for a value of all groups. False for columns of other lengths, and for anything that is no list or dict.");

static PyObject *holds(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n_args)
{
    if (n_args != 3) {
        PyErr_SetString(PyExc_TypeError, "need holds(groups, keys, columns)");
        return NULL;
    }
    PyObject *groups = args[0], *keys = args[1], *columns = args[2];
    if (!are_keys_and_columns(keys, columns))
        return NULL;
    int held = PyList_Check(groups) && have_n_items(columns, PyList_GET_SIZE(groups));
    for (Py_ssize_t i = 0; held == 1 && i < PyList_GET_SIZE(groups); i++) {
        PyObject *group = Py_NewRef(PyList_GET_ITEM(groups, i));
        held = PyDict_Check(group) ? group_holds(group, i, keys, columns) : 0;
        Py_DECREF(group);
    }
    return held < 0 ? NULL : PyBool_FromLong(held);
}

/* All four are owned. */
typedef struct {
    PyObject *group, *key, *value, *old;
} Write;

typedef struct {
    Write *writes;
    Py_ssize_t n;
} Writes;

static int can_be_put(PyObject *groups, PyObject *keys, PyObject *columns)
{
    if (!need_type(PyList_Check(groups), "groups to be a list", groups) || !are_keys_and_columns(keys, columns))
        return 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(groups); i++)
        if (!need_type(PyDict_Check(PyList_GET_ITEM(groups, i)), "each group to be a dict", PyList_GET_ITEM(groups, i)))
            return 0;
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(columns); k++) {
        PyObject *column = PyTuple_GET_ITEM(columns, k);
        if (PyList_Check(column) &&
            !need_n(PyList_GET_SIZE(column), "one item per group in each column", PyList_GET_SIZE(groups)))
            return 0;
    }
    return 1;
}

static int collect_writes(Writes *all, PyObject *groups, PyObject *keys, PyObject *columns)
{
    const Py_ssize_t n_groups = PyList_GET_SIZE(groups), n_keys = PyTuple_GET_SIZE(keys);
    if ((all->writes = PyMem_New(Write, n_groups * n_keys)) == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < n_groups; i++)
        for (Py_ssize_t k = 0; k < n_keys; k++) {
            PyObject *value = item_of(PyTuple_GET_ITEM(columns, k), i);
            if (value != Py_Ellipsis)
                all->writes[all->n++] = (Write){.group = Py_NewRef(PyList_GET_ITEM(groups, i)),
                                                .key = Py_NewRef(PyTuple_GET_ITEM(keys, k)),
                                                .value = Py_NewRef(value)};
        }
    return 0;
}

/* Dropping an old value may run its finalizer, any Python code: so all are kept until everything is written. */
static int keep_old(Writes *all)
{
    for (Py_ssize_t j = 0; j < all->n; j++) {
        Write *write = &all->writes[j];
        write->old = Py_XNewRef(PyDict_GetItemWithError(write->group, write->key));
        if (write->old == NULL && PyErr_Occurred())
            return -1;
    }
    return 0;
}

static int write_all(const Writes *all)
{
    for (Py_ssize_t j = 0; j < all->n; j++)
        if (PyDict_SetItem(all->writes[j].group, all->writes[j].key, all->writes[j].value) < 0)
            return -1; /* out of memory for a new key */
    return 0;
}

static void release_writes(Writes *all)
{
    for (Py_ssize_t j = 0; j < all->n; j++) {
        Py_DECREF(all->writes[j].group);
        Py_DECREF(all->writes[j].key);
        Py_DECREF(all->writes[j].value);
        Py_XDECREF(all->writes[j].old);
    }
    PyMem_Free(all->writes);
}

PyDoc_STRVAR(put_doc,
             "put(groups, keys, columns) -> None\n\n"
             "Set ``groups[i][keys[k]] = columns[k][i]`` everywhere, except where a column has ``...``. Everything is\n"
             "checked first: where an argument has a wrong type or length, nothing is written. No signal handler and\n"
             "no other thread runs between the first write and the last. A subclass of dict is written to as a plain\n"
             "dict.");

static PyObject *put(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n_args)
{
    if (n_args != 3) {
        PyErr_SetString(PyExc_TypeError, "need put(groups, keys, columns)");
        return NULL;
    }
    Writes all = {0};
    if (!can_be_put(args[0], args[1], args[2]) || collect_writes(&all, args[0], args[1], args[2]) < 0)
        return NULL;
    const int status = keep_old(&all) < 0 ? -1 : write_all(&all);
    release_writes(&all);
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(scaled_doc, "scaled(numbers, factor) -> list\n\n``[number * factor for number in numbers]`` for floats.");

static PyObject *scaled(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n_args)
{
    if (n_args != 2) {
        PyErr_SetString(PyExc_TypeError, "need scaled(numbers, factor)");
        return NULL;
    }
    PyObject *numbers = args[0], *factor = args[1];
    if (!need_type(PyList_Check(numbers), "numbers to be a list", numbers) ||
        !need_type(PyFloat_CheckExact(factor), "factor to be a float", factor))
        return NULL;
    /* The list may shrink here: allocating may start a garbage collection, which may run finalizers. */
    PyObject *products = PyList_New(PyList_GET_SIZE(numbers));
    for (Py_ssize_t i = 0; products != NULL && i < PyList_GET_SIZE(products); i++) {
        PyObject *number = i < PyList_GET_SIZE(numbers) ? PyList_GET_ITEM(numbers, i) : Py_None;
        PyObject *product = need_type(PyFloat_CheckExact(number), "each number to be a float", number)
                                ? PyFloat_FromDouble(PyFloat_AS_DOUBLE(number) * PyFloat_AS_DOUBLE(factor))
                                : NULL;
        if (product == NULL)
            Py_CLEAR(products);
        else
            PyList_SET_ITEM(products, i, product);
    }
    return products;
}

/* -- the layout of tensors, for the update on a device ---------------------------------------------------------- */

enum { FIELDS = 6 }; /* of a record, before the fields of its state */

/* Whether both have the same elements in the same order of memory. Without elements, strides have no meaning. */
static int is_in_step(const DLTensor *param, const DLTensor *other, int64_t numel)
{
    return numel == 0 ? is_same_type(param, other) && is_same_shape(param, other)
                      : is_like(param, other) && is_addressable(other);
}

/* One float32 on the parameter's device: a record has neither dtype nor device of it, so both are fixed. */
static int is_flag(const DLTensor *param, const DLTensor *flag)
{
    return flag->device_type == param->device_type && flag->device_id == param->device_id && flag->code == FLOAT &&
           flag->bits == 32 && numel_of(flag) == 1 && is_addressable(flag);
}

/* The state's tensors: the first is laid out as the parameter, the others are flags. */
static int describe_state(const Row *row, Py_ssize_t n_keys, const DLTensor *param, int64_t *fields)
{
    for (Py_ssize_t k = 0; k < n_keys; k++) {
        DLTensor seen;
        PyObject *tensor = row->state[k];
        if (tensor == NULL || tensor == Py_None)
            continue;
        if (!is_plain(tensor, &seen) ||
            !(k == 0 ? is_in_step(param, &seen, numel_of(param)) : is_flag(param, &seen)))
            return 0;
        fields[2 * k] = (int64_t)(intptr_t)tensor;
        fields[2 * k + 1] = (int64_t)(intptr_t)data_of(&seen);
    }
    return 1;
}

static int describe_record(const Row *row, Py_ssize_t n_keys, int64_t *record, int64_t *grad)
{
    DLTensor seen[2];
    if (row->left || !is_plain(row->param, &seen[0]) || !is_plain(row->grad, &seen[1]) ||
        !(is_real(&seen[0]) || is_half(&seen[0])))
        return 0;
    const int64_t numel = numel_of(&seen[0]);
    if (!is_in_step(&seen[0], &seen[1], numel) || (numel != 0 && !(is_addressable(&seen[0]) && is_dense(&seen[0]))))
        return 0;
    record[0] = row->group;
    record[1] = (int64_t)(intptr_t)row->param;
    record[2] = (int64_t)(intptr_t)data_of(&seen[0]);
    record[3] = numel;
    record[4] = seen[0].code * 256 + seen[0].bits;
    record[5] = (int64_t)seen[0].device_type * 65536 + seen[0].device_id;
    *grad = (int64_t)(intptr_t)data_of(&seen[1]);
    return describe_state(row, n_keys, &seen[0], record + FIELDS);
}

/* No Python code runs in here, as in describe_and_compute. */
static PyObject *describe_layout(const Gathered *all)
{
    const Py_ssize_t n_keys = PyTuple_GET_SIZE(all->keys), width = FIELDS + 2 * n_keys;
    int64_t *records = PyMem_Calloc(all->n ? all->n : 1, width * sizeof *records);
    int64_t *grads = PyMem_Calloc(all->n ? all->n : 1, sizeof *grads);
    PyObject *found = NULL;
    int ordinary = 1;
    if (records == NULL || grads == NULL)
        PyErr_NoMemory();
    else {
        for (Py_ssize_t i = 0; ordinary && i < all->n; i++)
            ordinary = describe_record(&all->rows[i], n_keys, records + i * width, grads + i);
        found = ordinary ? Py_BuildValue("y#y#", records, all->n * width * (Py_ssize_t)sizeof *records, grads,
                                         all->n * (Py_ssize_t)sizeof *grads)
                         : Py_NewRef(Py_None);
    }
    PyMem_Free(records);
    PyMem_Free(grads);
    return found;
}

/* Whether its gradients can be read without running a subclass's code. */
static int is_ordinary_group(PyObject *group)
{
    PyObject *params = PyDict_Check(group) ? Py_XNewRef(PyDict_GetItemWithError(group, name.params)) : NULL;
    int is_ordinary = params != NULL && PyList_Check(params);
    for (Py_ssize_t i = 0; is_ordinary && i < PyList_GET_SIZE(params); i++)
        is_ordinary = is_known(PyList_GET_ITEM(params, i));
    Py_XDECREF(params);
    return is_ordinary;
}

static int are_ordinary_groups(PyObject *groups)
{
    int are_ordinary = PyList_Check(groups);
    for (Py_ssize_t i = 0; are_ordinary && i < PyList_GET_SIZE(groups); i++) {
        PyObject *group = Py_NewRef(PyList_GET_ITEM(groups, i));
        are_ordinary = is_ordinary_group(group);
        Py_DECREF(group);
    }
    return are_ordinary;
}

PyDoc_STRVAR(layout_doc,
             "layout(groups, state, keys) -> None or (bytes, bytes)\n\n"
             "Describe every parameter that has a gradient, in order. The first bytes hold one record of int64 for\n"
             "each: index of its group, id, address, numel, 256 * DLPack's dtype code + bits, 65536 * device type +\n"
             "device id; then id and address of ``state[param][key]`` for each of at most two keys, 0 and 0 where that\n"
             "is absent or None. The second bytes hold the address of each gradient. Tables of addresses that were\n"
             "made for one result are right for every result with equal bytes.\n\n"
             "None where anything is out of the ordinary: other containers than list and dict, tensors that are not\n"
             "dense floats in memory, subclasses, a gradient or a first tensor of the state whose layout differs\n"
             "from the parameter's, a later tensor of the state that is not one float32 on the parameter's device.");

static PyObject *layout(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n_args)
{
    if (n_args != 3 || torch.api == NULL) {
        PyErr_SetString(PyExc_TypeError, "need use() once, then layout(groups, state, keys)");
        return NULL;
    }
    if (!are_keys(args[2]))
        return NULL;
    if (PyTuple_GET_SIZE(args[2]) > 2) {
        PyErr_Format(PyExc_ValueError, "need at most two keys, got %zd", PyTuple_GET_SIZE(args[2]));
        return NULL;
    }
    if (!PyDict_Check(args[1]) || !are_ordinary_groups(args[0]))
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    Gathered all = {.state = args[1], .keys = args[2]};
    PyObject *found = NULL;
    if (gather(&all, args[0], 0) == 0) {
        const int collects = PyGC_Disable();
        found = describe_layout(&all);
        if (collects)
            PyGC_Enable();
    }
    release_gathered(&all);
    return found;
}

/* -- the module ------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(use_doc,
             "use(exchange_api, tensor_type, parameter_type, is_neg, grad, impl, keys, negative)\n\n"
             "Set the parts of torch to work with: ``torch.Tensor.__dlpack_c_exchange_api__``, two types, a method, a\n"
             "descriptor, and where in memory a tensor keeps what ``is_neg`` returns (negative=0: unknown).");

static PyObject *use(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n_args)
{
    if (n_args != 8 || !PyType_Check(args[1]) || !PyType_Check(args[2]) || Py_TYPE(args[4]) != &PyGetSetDescr_Type) {
        PyErr_SetString(PyExc_TypeError, "need a capsule, two types, a method, a getset descriptor and three numbers");
        return NULL;
    }
    const Py_ssize_t impl = PyLong_AsSsize_t(args[5]), keys = PyLong_AsSsize_t(args[6]);
    const uint64_t negative = PyLong_AsUnsignedLongLong(args[7]);
    if (PyErr_Occurred())
        return NULL;
    const ExchangeAPI *api = PyCapsule_GetPointer(args[0], "dlpack_exchange_api");
    if (api == NULL)
        return NULL;
    if (api->major != 1) { /* a major version may lay these structures out differently */
        PyErr_Format(PyExc_ImportError, "need DLPack 1.x, got %u.%u", api->major, api->minor);
        return NULL;
    }
    Py_XSETREF(torch.tensor, (PyTypeObject *)Py_NewRef(args[1]));
    Py_XSETREF(torch.parameter, (PyTypeObject *)Py_NewRef(args[2]));
    Py_XSETREF(torch.is_neg, Py_NewRef(args[3]));
    torch.grad = ((PyGetSetDescrObject *)Py_NewRef(args[4]))->d_getset; /* its type lives as long as torch */
    torch.impl = impl;
    torch.keys = keys;
    torch.negative = negative;
    torch.api = api;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"update", (PyCFunction)(void (*)(void))update, METH_FASTCALL, update_doc},
    {"holds", (PyCFunction)(void (*)(void))holds, METH_FASTCALL, holds_doc},
    {"put", (PyCFunction)(void (*)(void))put, METH_FASTCALL, put_doc},
    {"scaled", (PyCFunction)(void (*)(void))scaled, METH_FASTCALL, scaled_doc},
    {"layout", (PyCFunction)(void (*)(void))layout, METH_FASTCALL, layout_doc},
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
        {&name.foreach, "foreach"},
        {&name.differentiable, "differentiable"},
        {&name.fused, "fused"},
        {&name.momentum_buffer, "momentum_buffer"},
        {&name.grad, "grad"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if ((*names[i].where = PyUnicode_InternFromString(names[i].text)) == NULL)
            return NULL;
    if ((name.of_sgd = PyTuple_Pack(1, name.momentum_buffer)) == NULL)
        return NULL;
    return PyModule_Create(&module);
}
