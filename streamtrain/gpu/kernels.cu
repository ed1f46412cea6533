// Kernels of streamtrain.gpu. REAL is float or double; a block has THREADS threads.
// Each has a plain reference in streamtrain/kernels/blocks.py.

// z of cells, dense rows of (cells, genes): a block of threads for each, from cell `start` on.
// `nothing` is z of a cell without entries; `rule` has cap, factor and offset of each source gene.
template <typename Gene>
__device__ void fill(const REAL* data, const Gene* indices, const long long* indptr,
                     long long start, const int* place, const double* rule, const REAL* nothing,
                     long long n_genes, REAL* out) {
    const long long end = indptr[start + blockIdx.x + 1];
    REAL* row = out + blockIdx.x * n_genes;
    for (long long gene = threadIdx.x; gene < n_genes; gene += THREADS) row[gene] = nothing[gene];
    __syncthreads();  // another thread may have written there
    for (long long p = indptr[start + blockIdx.x] + threadIdx.x; p < end; p += THREADS) {
        const long long gene = indices[p];
        const int at = place[gene];
        if (at < 0) continue;
        const double* r = rule + 3 * gene;
        const double x = (double)data[p];
        row[at] = (REAL)((x < r[0] ? x : r[0]) * r[1] - r[2]);
    }
}

extern "C" __global__ void fill_uint16(
    const REAL* data, const unsigned short* indices, const long long* indptr, long long start,
    const int* place, const double* rule, const REAL* nothing, long long n_genes, REAL* out) {
    fill(data, indices, indptr, start, place, rule, nothing, n_genes, out);
}

extern "C" __global__ void fill_int32(
    const REAL* data, const int* indices, const long long* indptr, long long start,
    const int* place, const double* rule, const REAL* nothing, long long n_genes, REAL* out) {
    fill(data, indices, indptr, start, place, rule, nothing, n_genes, out);
}

// Losses by the numbers of streamtrain/kernels/losses.py.
enum { LOG, HINGE, MODIFIED_HUBER, SQUARED_HINGE, PERCEPTRON, SQUARED_ERROR, HUBER,
       EPSILON_INSENSITIVE, SQUARED_EPSILON_INSENSITIVE };

__device__ double limited(double slope, double most) {
    return slope > most ? most : (slope < -most ? -most : slope);
}

__device__ double gradient(int loss, double epsilon, double y, double score) {
    const double steepest = 1e12;
    if (loss == LOG) {
        if (score > -37) {
            const double e = exp(-score);
            return ((1 - y) - y * e) / (1 + e);
        }
        return exp(score) - y;
    }
    const double sign = 2 * y - 1, margin = sign * score;
    if (loss == HINGE) return margin <= 1 ? -sign : 0;
    if (loss == PERCEPTRON) return margin <= 0 ? -sign : 0;
    if (loss == MODIFIED_HUBER) {
        if (margin >= 1) return 0;
        return margin >= -1 ? -2 * (1 - margin) * sign : -4 * sign;
    }
    if (loss == SQUARED_HINGE) return margin < 1 ? limited(-2 * (1 - margin) * sign, steepest) : 0;
    const double residual = score - sign;
    if (loss == SQUARED_ERROR) return limited(residual, steepest);
    if (loss == HUBER) return limited(residual, epsilon);
    if (fabs(residual) <= epsilon) return 0;
    const double side = residual > 0 ? 1 : -1;
    if (loss == EPSILON_INSENSITIVE) return side;
    return limited(2 * (residual - side * epsilon), steepest);
}

__device__ double loss_value(int loss, double epsilon, double y, double score) {
    if (loss == LOG) return (score > 0 ? score : 0) + log1p(exp(-fabs(score))) - y * score;
    const double margin = (2 * y - 1) * score, short_of = 1 - margin;
    if (loss == HINGE) return short_of > 0 ? short_of : 0;
    if (loss == PERCEPTRON) return margin < 0 ? -margin : 0;
    if (loss == MODIFIED_HUBER) {
        if (margin < -1) return -4 * margin;
        return short_of > 0 ? short_of * short_of : 0;
    }
    if (loss == SQUARED_HINGE) return short_of > 0 ? short_of * short_of : 0;
    double off = fabs(short_of);
    if (loss == SQUARED_ERROR) return 0.5 * off * off;
    if (loss == HUBER) return off <= epsilon ? 0.5 * off * off : epsilon * (off - 0.5 * epsilon);
    off = off > epsilon ? off - epsilon : 0;
    return loss == EPSILON_INSENSITIVE ? off : off * off;
}

// The steps of n cells, up to THREADS, from cell `first` on, one after the other, for each column: a
// block of threads for a column, and a thread for a cell, which keeps its cell's margin under the
// present weights. When cell i steps, the margins of those after it decay and move by its products
// with cell i.
extern "C" __global__ void steps(
    const REAL* scores, const REAL* gram, const int* codes, const double* weight,
    const unsigned char* judged, const double* eta, const double* decay,
    const unsigned char* averaged, const double* after, const double* tail, const double* alpha,
    const int* group, const int* label, const double* positive, const double* negative, int first,
    int n, int n_columns, int n_groups, int loss, double epsilon, double intercept_rate, int tracked,
    int averaging, double* b, double* ab, double* square, double* losses, double* penalties,
    REAL* out) {
    __shared__ double step[2], decays[THREADS], intercept, sums[3];  // ab, |W|^2, penalties
    const int k = blockIdx.x, j = threadIdx.x, g = group[k];
    // A thread steps once, and the others wait: what its step takes is read before the first one.
    double margin = 0, y = 0, size = 0, factor = 0, kept = 0, summed = 0, length = 0;
    double scored = 0;
    bool counts = false, judges = false;
    if (j < n) {
        const long long at = (long long)(first + j) * n_groups + g;
        margin = (double)scores[(long long)j * n_columns + k];
        y = codes[first + j] == label[k] ? 1 : 0;
        size = eta[at];
        factor = (y > 0 ? positive[k] : negative[k]) * weight[first + j];
        kept = after[at];
        summed = tail[at];
        length = (double)gram[(long long)j * n + j];
        counts = averaged[at];
        judges = tracked && judged[first + j];
        decays[j] = decay[at];
    }
    const double penalty = alpha[g] * 0.5;
    if (j == 0) {
        intercept = b[k];
        sums[0] = ab[k];
        sums[1] = square[k];
        sums[2] = penalties[k];
    }
    __syncthreads();
    for (int i = 0; i < n; i++) {
        // Read before the barrier too: it takes as long as a step.
        const double product = i < j && j < n ? (double)gram[(long long)i * n + j] : 0;
        const double lost = decays[i];
        if (j == i) {
            const double score = margin + intercept;
            scored = score;
            if (tracked > 1) sums[2] += penalty * sums[1];
            double s = -size * gradient(loss, epsilon, y, score);
            s *= factor;
            intercept += intercept_rate * s;
            if (counts) sums[0] += intercept;
            if (tracked > 1) sums[1] = lost * lost * sums[1] + 2 * lost * margin * s + s * s * length;
            step[i & 1] = s;
            REAL* row = out + (long long)i * n_columns * (averaging ? 2 : 1);
            row[k] = (REAL)(s * kept);
            if (averaging) row[n_columns + k] = (REAL)(s * summed);
        }
        __syncthreads();  // one a step: the next one writes to the other place
        if (j > i) margin = lost * margin + step[i & 1] * product;
    }
    if (tracked) {  // all at a time: in the loop the others would wait for each
        decays[j] = judges ? loss_value(loss, epsilon, y, scored) : 0;
        for (int half = THREADS / 2; half > 0; half /= 2) {
            __syncthreads();
            if (j < half) decays[j] += decays[j + half];
        }
    }
    if (j == 0) {
        b[k] = intercept;
        ab[k] = sums[0];
        square[k] = sums[1];
        penalties[k] = sums[2];
        if (tracked) losses[k] += decays[0];
    }
}

// The end of a block: A += begun U + moved and U = whole U + moved, the factors being by block and
// group.
extern "C" __global__ void settle(
    const REAL* moved, const double* whole, const double* begun, const int* group, int block,
    int n_groups, long long n_weights, int n_columns, int averaging, REAL* U, REAL* A) {
    const long long at = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (at >= n_weights) return;
    // Cards divide 64 bits slowly.
    const long long gene = n_weights >> 32 ? at / n_columns : (unsigned)at / (unsigned)n_columns;
    const int k = (int)(at - gene * n_columns);
    const REAL* row = moved + gene * n_columns * (averaging ? 2 : 1);
    const int g = block * n_groups + group[k];
    const REAL u = U[at];
    if (averaging) A[at] += (REAL)begun[g] * u + row[n_columns + k];
    U[at] = (REAL)whole[g] * u + row[k];
}

// Entries by gene into dense rows of zeros, (genes, cells): a warp for each run, which is a gene in
// a tile, so that its writes lie together. `begin` is the cell of the first column.
template <typename Gene>
__device__ void spread(const REAL* values, const unsigned char* cells, const Gene* genes,
                       const int* first, const long long* edges, int begin, long long n_runs,
                       long long n_cells, double* out) {
    const long long run = ((long long)blockIdx.x * THREADS + threadIdx.x) / 32;
    if (run >= n_runs) return;
    double* row = out + genes[run] * n_cells + (first[run] - begin);
    const long long end = edges[run + 1];
    for (long long p = edges[run] + threadIdx.x % 32; p < end; p += 32)
        row[cells[p]] = (double)values[p];
}

extern "C" __global__ void spread_uint16(
    const REAL* values, const unsigned char* cells, const unsigned short* genes, const int* first,
    const long long* edges, int begin, long long n_runs, long long n_cells, double* out) {
    spread(values, cells, genes, first, edges, begin, n_runs, n_cells, out);
}

extern "C" __global__ void spread_int32(
    const REAL* values, const unsigned char* cells, const int* genes, const int* first,
    const long long* edges, int begin, long long n_runs, long long n_cells, double* out) {
    spread(values, cells, genes, first, edges, begin, n_runs, n_cells, out);
}

// Scores, (n, columns), into residuals of logistic regression, a thread for each. Losses, slopes
// and curvatures are added up by place in the tile: no two threads share a sum, so its order is
// always the same.
extern "C" __global__ void residuals(
    const int* codes, const int* classes, const double* weights, const double* constant,
    long long n_scores, int n_columns, double* score, double* loss, double* total, double* bend) {
    const long long at = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (at >= n_scores) return;
    const int k = (int)(at % n_columns), code = codes[at / n_columns];
    const double s = score[at] + constant[k], weight = weights[(long long)code * n_columns + k];
    const double y = code == classes[k] ? 1 : 0, small = exp(-fabs(s));
    const double p = (s >= 0 ? 1 : small) / (1 + small), slope = weight * (p - y);
    loss[at] += weight * (log1p(small) + (s > 0 ? s : 0) - y * s);
    total[at] += slope;
    bend[at] += weight * p * (1 - p);
    score[at] = slope;
}
