// The canonical chain on CUDA: convolutions whose every output is one sequence of fused multiply-adds,
//
//     acc = 0;  acc = fma(sample, tap, acc) by kernel row, kernel column and channel;  y = acc + bias
//
// Nothing may reorder it. So no depth is shared out among threads, none is padded (one more fma(0, 0, acc)
// would turn -0 into 0), and every operation is an intrinsic that says how it rounds, which no compiler fuses.
// Samples around the image are zeros, as if they had been written there.

using i64 = long long;
using u32 = unsigned;

struct Shape {
  const void *x, *weight, *bias;  // channels of a pixel of x lie side by side, and of y, too
  void* y;
  const void* others[2];  // what `finished` reads beside, as large as y
  i64 x_image, x_row, x_column, y_image, y_row, y_column;  // strides, in numbers
  i64 other_image[2], other_row[2], other_column[2];
  i64 next_column, next_row;  // in x, from behind a tap to the one beside it, and from behind a row of them on
  u32 x_height, x_width;
  int top, left;  // rows and columns of zeros before x; less than nothing cuts
  u32 pixels, height, width;                               // of y, all images together
  int stride_rows, stride_columns, dilation_rows, dilation_columns, kernel_rows, kernel_columns;
  int groups, outputs, depth;  // channels of a group that are written and read
  int end_rows, end_columns;   // of the kernel, dilated
  int whole_vectors;           // y can be written by 128 bits
};

template <typename T>
struct alignas(16) Vector {
  T at[16 / sizeof(T)];
};

__device__ __forceinline__ float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ __forceinline__ float multiplied(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double multiplied(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }

// What becomes of an output, `at` being its places in the others. A program that is fused with the chain stands
// before all this.
#ifndef FINISHED
template <typename T>
__device__ __forceinline__ T finished(T value, const void* const* others, const i64 (&at)[2]) {
  return value;
}
#endif

// From global to shared memory, without waiting for it. Where nothing is there nothing is read, and zeros come.
template <int BYTES>
__device__ __forceinline__ void copy(void* to, const void* from, bool there) {
#if __CUDA_ARCH__ >= 800
  const u32 place = (u32)__cvta_generic_to_shared(to);
// by a predicate, which costs nothing; a number of bytes takes four instructions more
#define COPY(kind)                                                           \
  asm volatile(                                                              \
      "{.reg .pred %%none; setp.eq.u32 %%none, %3, 0;\n\t"                   \
      "cp.async." kind ".shared.global [%0], [%1], %2, %%none;}" ::"r"(place), \
      "l"(from), "n"(BYTES), "r"((u32)there)                                 \
      : "memory")
  if (BYTES == 16)
    COPY("cg");
  else
    COPY("ca");
#undef COPY
#else
  for (int i = 0; i < BYTES / 4; i++) ((u32*)to)[i] = there ? ((const u32*)from)[i] : 0;
#endif
}

// Until all that this thread copies is there.
__device__ __forceinline__ void arrived() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Where an output's first tap reads: in bytes from the start of x (the low half and the high one), and the row
// and column.
using Pixel = int4;

__device__ __forceinline__ i64 offset(const Pixel& pixel) { return (i64)pixel.y << 32 | (u32)pixel.x; }

template <typename T>
__device__ __forceinline__ Pixel read_by(const Shape& s, u32 pixel) {
  const int row = pixel / s.width % s.height * s.stride_rows - s.top;
  const int column = pixel % s.width * s.stride_columns - s.left;
  const i64 at = pixel / s.width / s.height * s.x_image + row * s.x_row + column * s.x_column;
  const i64 bytes = at * (int)sizeof(T);
  return make_int4((int)bytes, (int)(bytes >> 32), row, column);
}

struct Place {
  u32 image, row, column;  // in y
};

__device__ __forceinline__ Place place_of(const Shape& s, u32 pixel) {
  return {pixel / s.width / s.height, pixel / s.width % s.height, pixel % s.width};
}

// An output, finished. `channel` counts those of all groups.
template <typename T>
__device__ __forceinline__ T finished_at(const Shape& s, T value, Place place, i64 channel) {
  i64 at[2];
#pragma unroll
  for (int n = 0; n < 2; n++)
    at[n] = place.image * s.other_image[n] + place.row * s.other_row[n] + place.column * s.other_column[n] + channel;
  return finished(value, s.others, at);
}

template <typename T>
__device__ __forceinline__ T* written_at(const Shape& s, Place place) {
  return (T*)s.y + place.image * s.y_image + place.row * s.y_row + place.column * s.y_column;
}

// What a thread has computed of its first pixels is finished and written. Its channels come by vectors that are LANES
// vectors apart, from n0 on, as counted from the block's first channel.
template <typename T, int HIGH, int WIDE, int LANES, typename Places>
__device__ __forceinline__ void finish(const Shape& s, const T (&acc)[HIGH][WIDE], u32 pixels, u32 group,
                                       u32 first_channel, int n0, Places places) {
  using V = Vector<T>;
  constexpr int SIZE = sizeof(V) / sizeof(T);
  const int left = s.outputs - (int)first_channel;
  const i64 first = (i64)group * s.outputs + first_channel;
  T addends[WIDE];
#pragma unroll
  for (int j = 0; j < WIDE; j++) {
    const int n = n0 + j / SIZE * LANES * SIZE + j % SIZE;
    addends[j] = s.bias && n < left ? ((const T*)s.bias)[first + n] : 0;
  }
#pragma unroll
  for (int i = 0; i < HIGH; i++) {
    if (i >= pixels) break;
    const Place place = places(i);
    T* const to = written_at<T>(s, place) + first;
#pragma unroll
    for (int j = 0; j < WIDE; j += SIZE) {
      const int n = n0 + LANES * j;
      V found;
#pragma unroll
      for (int k = 0; k < SIZE; k++)
        if (n + k < left)
          found.at[k] = finished_at(s, add(acc[i][j + k], addends[j + k]), place, first + n + k);
      if (s.whole_vectors) {
        if (n < left) *(V*)(to + n) = found;
      } else
#pragma unroll
        for (int k = 0; k < SIZE; k++)
          if (n + k < left) to[n + k] = found.at[k];
    }
  }
}

// This thread's number, asked for anew where it is needed: what follows from it then takes no registers.
__device__ __forceinline__ u32 thread_anew() {
  u32 thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// What one launch computes: a block's place along y says which.
template <int COUNT>
struct Shapes {
  Shape of[COUNT];
};

// An implicit matrix product: rows are pixels, columns output channels, the depth all taps in order. A block
// has ROWS x COLUMNS outputs, a thread HIGH x WIDE; of a warp's threads, LANES have the same pixels. Of samples
// and weights DEPTH at a time lie in shared memory, while the next ones are on their way. WHOLE: samples come by
// 128 bits. SQUARED: each stands for its product with itself. POINT: the kernel is a single tap, and there are no
// zeros around x. COUNT such products go together, none of which reads what another writes.
// The weights are packed as (panels, taps filled up to whole DEPTHs, COLUMNS).
template <typename T, int ROWS, int COLUMNS, int HIGH, int WIDE, int LANES, int BLOCKS, bool WHOLE,
          bool SQUARED, bool POINT, int COUNT>
__global__ void __launch_bounds__(ROWS / HIGH * (COLUMNS / WIDE), BLOCKS)
    tiled(const __grid_constant__ Shapes<COUNT> shapes) {
  using V = Vector<T>;
  constexpr int SIZE = sizeof(V) / sizeof(T), DEPTH = 4 * SIZE, THREADS = ROWS / HIGH * (COLUMNS / WIDE);
  constexpr int ACROSS = COLUMNS / (LANES * WIDE), DOWN = 32 / LANES;  // warps of a block, threads of a warp
  constexpr int AT_ONCE = WHOLE ? SIZE : 1, FETCHES = DEPTH / AT_ONCE;  // of a pixel
  constexpr int PIXELS = ROWS * FETCHES / THREADS, AWAY = THREADS / FETCHES;  // of a thread, and how far apart
  constexpr int VECTORS = DEPTH * COLUMNS / SIZE;   // of taps
  static_assert(PIXELS * THREADS == ROWS * FETCHES);
  __shared__ alignas(16) T samples[2][ROWS][DEPTH + SIZE];              // a row more hits no bank twice
  __shared__ alignas(16) T taps[2][DEPTH][COLUMNS];
  __shared__ Pixel pixels[ROWS];

  auto shape = [&]() -> const Shape& {
    u32 which = 0;  // asked for anew, as a thread's number is
    if (COUNT > 1) asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(which));
    return shapes.of[which];
  };
  const Shape& s = shape();
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  // neighbours in time have the same pixels
  const u32 across = (s.outputs + COLUMNS - 1) / COLUMNS, panels = s.groups * across;
  const u32 panel = blockIdx.x % panels, first_pixel = blockIdx.x / panels * ROWS;
  if (COUNT > 1 && first_pixel >= s.pixels) return;
  const u32 group = panel / across, first_channel = panel % across * COLUMNS;
  const int total = s.kernel_rows * s.kernel_columns * s.depth, steps = (total + DEPTH - 1) / DEPTH;
  // beyond the last pixel the first is computed again, and not stored
#pragma unroll 1
  for (int m = thread; m < ROWS; m += THREADS)
    pixels[m] = read_by<T>(s, first_pixel + m < s.pixels ? first_pixel + m : 0);
  __syncthreads();

  const T* weight = (const T*)s.weight + (i64)panel * steps * (DEPTH * COLUMNS) + thread * SIZE;
  // where this thread's part of the depth reads next
  int channel = thread % FETCHES * AT_ONCE, down = 0, across_taps = 0;
  const T* tap = (const T*)s.x + (i64)group * s.depth + channel;
  auto next_tap = [&]() {
    const Shape& s = shape();
    while (!POINT && channel >= s.depth) {
      channel -= s.depth, across_taps += s.dilation_columns, tap += s.next_column;
      if (across_taps == s.end_columns) across_taps = 0, down += s.dilation_rows, tap += s.next_row;
    }
  };
  next_tap();
  auto fetch = [&](int stage) {
    const Shape& s = shape();
    const u32 thread = thread_anew();
    const u32 first = thread / FETCHES, place = thread % FETCHES * AT_ONCE;
    const u32 height = down < s.end_rows ? s.x_height : 0;
    constexpr int SOME = 6;  // are looked up at once: taking turns with copies costs
#pragma unroll
    for (int i = 0; i < PIXELS; i += SOME) {
      Pixel some[SOME];
#pragma unroll
      for (int j = i; j < i + SOME && j < PIXELS; j++) some[j - i] = pixels[first + j * AWAY];
#pragma unroll
      for (int j = i; j < i + SOME && j < PIXELS; j++) {
        const Pixel pixel = some[j - i];
        const bool there =
            POINT ? channel < s.depth
                  : (u32)(pixel.z + down) < height & (u32)(pixel.w + across_taps) < s.x_width;
        const char* from = (const char*)tap + offset(pixel);
        copy<AT_ONCE * sizeof(T)>(&samples[stage][first + j * AWAY][place], from, there);
      }
    }
#pragma unroll
    for (int i = 0; i < VECTORS; i += THREADS)
      if (i + THREADS <= VECTORS || thread < VECTORS - i)
        copy<16>((T*)taps[stage] + (thread + i) * SIZE, weight + i * SIZE, true);
    weight += DEPTH * COLUMNS;
    channel += DEPTH, tap += DEPTH;
    next_tap();
  };

  T acc[HIGH][WIDE];
#pragma unroll
  for (int i = 0; i < HIGH; i++)
#pragma unroll
    for (int j = 0; j < WIDE; j++) acc[i][j] = 0;
  // this thread's pixels are DOWN apart, and its channels come by vectors that are LANES vectors apart
  const int m0 = warp / ACROSS * (DOWN * HIGH) + lane / LANES;
  const int n0 = warp % ACROSS * (LANES * WIDE) + lane % LANES * SIZE;
  auto multiply = [&](int stage, int k, const T(&a)[HIGH]) {
    T b[WIDE];
#pragma unroll
    for (int j = 0; j < WIDE; j += SIZE) *(V*)&b[j] = *(const V*)&taps[stage][k][n0 + LANES * j];
#pragma unroll
    for (int i = 0; i < HIGH; i++)
#pragma unroll
      for (int j = 0; j < WIDE; j++) acc[i][j] = fma(a[i], b[j], acc[i][j]);
  };

  auto arrive = [&](int stage) {
    arrived();
    if (SQUARED) {  // what this thread has copied: before others read it, and once for all outputs
      const u32 thread = thread_anew();
      T* const first = &samples[stage][thread / FETCHES][thread % FETCHES * AT_ONCE];
#pragma unroll
      for (int i = 0; i < PIXELS; i++) {
        T* const copied = first + i * AWAY * (DEPTH + SIZE);
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) copied[k] = multiplied(copied[k], copied[k]);
      }
    }
    __syncthreads();  // all of this stage is there, and all threads have done with the other
  };
  fetch(0);
  const int whole = total / DEPTH;
  for (int step = 0; step < whole; step++) {
    const int stage = step & 1;
    arrive(stage);
    if (step + 1 < steps) fetch(stage ^ 1);
#pragma unroll
    for (int k = 0; k < DEPTH; k += SIZE) {
      V a[HIGH];
#pragma unroll
      for (int i = 0; i < HIGH; i++) a[i] = *(const V*)&samples[stage][m0 + DOWN * i][k];
#pragma unroll
      for (int part = 0; part < SIZE; part++) {
        T one[HIGH];
#pragma unroll
        for (int i = 0; i < HIGH; i++) one[i] = a[i].at[part];
        multiply(stage, k + part, one);
      }
    }
  }
  if (whole < steps) arrive(whole & 1);
#pragma unroll 1
  for (int k = 0; k < total % DEPTH; k++) {
    T one[HIGH];
#pragma unroll
    for (int i = 0; i < HIGH; i++) one[i] = samples[whole & 1][m0 + DOWN * i][k];
    multiply(whole & 1, k, one);
  }

  const u32 first = first_pixel + m0;
  const u32 rows = first < s.pixels ? (s.pixels - first + DOWN - 1) / DOWN : 0;
  finish<T, HIGH, WIDE, LANES>(s, acc, rows, group, first_channel, n0, [&](u32 i) {
    return place_of(s, first + DOWN * i);
  });
}

// Few inputs, and pixels of a row that lie side by side: then a row of the kernel is SPAN numbers side by side in
// x, and from pixel to pixel it goes on by STEP numbers, or DOWN rows. A block's outputs are HIGH rows of pixels.
// All samples and taps that they need are read once, and one that is read serves many outputs. Weights are packed
// as those of `tiled`.
template <typename T, int ROWS, int COLUMNS, int HIGH, int WIDE, int LANES, int BLOCKS, int KERNEL_ROWS,
          int SPAN, int DOWN, int STEP>
__global__ void __launch_bounds__(ROWS / HIGH * (COLUMNS / WIDE), BLOCKS)
    few_inputs(const __grid_constant__ Shape s) {
  using V = Vector<T>;
  constexpr int SIZE = sizeof(V) / sizeof(T), THREADS = ROWS / HIGH * (COLUMNS / WIDE), WARPS = THREADS / 32;
  constexpr int ACROSS = COLUMNS / (LANES * WIDE), WIDTH = ROWS / HIGH;
  constexpr int LINES = (HIGH - 1) * DOWN + KERNEL_ROWS, LINE = (WIDTH - 1) * STEP + SPAN;
  constexpr int TAPS = KERNEL_ROWS * SPAN, DEPTH = 4 * SIZE, FILLED = (TAPS + DEPTH - 1) / DEPTH * DEPTH;
  __shared__ alignas(16) T samples[LINES][LINE];
  __shared__ alignas(16) T taps[TAPS][COLUMNS];

  const u32 thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const u32 panels = (s.outputs + COLUMNS - 1) / COLUMNS, panel = blockIdx.x % panels;
  const u32 wide = (s.width + WIDTH - 1) / WIDTH, high = (s.height + HIGH - 1) / HIGH;
  const u32 block = blockIdx.x / panels, image = block / wide / high;
  const u32 first_row = block / wide % high * HIGH, first_column = block % wide * WIDTH;

  const int top = (int)first_row * DOWN - s.top, left = (int)first_column * STEP - s.left * s.depth;
  const T* from = (const T*)s.x + image * s.x_image + (top + (int)warp) * s.x_row + left;
  for (int line = warp; line < LINES; line += WARPS, from += WARPS * s.x_row) {
    const u32 numbers = (u32)(top + line) < s.x_height ? s.x_width * s.depth : 0;
#pragma unroll
    for (int n = lane; n < LINE; n += 32)
      copy<sizeof(T)>(&samples[line][n], from + n, (u32)(left + n) < numbers);
  }
  const T* weight = (const T*)s.weight + (i64)panel * FILLED * COLUMNS;
#pragma unroll
  for (int i = thread * SIZE; i < TAPS * COLUMNS; i += THREADS * SIZE) copy<16>(taps[0] + i, weight + i, true);
  arrived();
  __syncthreads();

  T acc[HIGH][WIDE];
#pragma unroll
  for (int i = 0; i < HIGH; i++)
#pragma unroll
    for (int j = 0; j < WIDE; j++) acc[i][j] = 0;
  const u32 column = warp / ACROSS * (32 / LANES) + lane / LANES;
  const int n0 = warp % ACROSS * (LANES * WIDE) + lane % LANES * SIZE;
  const T *sample = samples[0] + column * STEP, *tap = taps[0] + n0;
#pragma unroll 1
  for (int row = 0; row < KERNEL_ROWS; row++, sample += LINE, tap += SPAN * COLUMNS) {
#pragma unroll
    for (int k = 0; k < SPAN; k++) {
      T b[WIDE];
#pragma unroll
      for (int j = 0; j < WIDE; j += SIZE) *(V*)&b[j] = *(const V*)&tap[k * COLUMNS + LANES * j];
#pragma unroll
      for (int i = 0; i < HIGH; i++)
#pragma unroll
        for (int j = 0; j < WIDE; j++) acc[i][j] = fma(sample[i * DOWN * LINE + k], b[j], acc[i][j]);
    }
  }

  if (first_column + column >= s.width) return;
  finish<T, HIGH, WIDE, LANES>(s, acc, s.height - first_row, 0, panel * COLUMNS, n0, [&](u32 i) {
    return Place{image, first_row + i, first_column + column};
  });
}

// Groups of one input channel each. Lanes are output channels, and a thread has RUN outputs of a row for its own.
// TAPS, STRIDE and DILATION are those along a row; then a row of samples is read once, and taps share it. Where
// TAPS is 0 the row's samples would be too many to hold, and every tap reads its own. Weights are (taps, outputs).
template <typename T, int RUN, int TAPS, int STRIDE, int DILATION>
__global__ void __launch_bounds__(128, 8) depthwise(const Shape s) {
  const u32 channels = s.groups * s.outputs, channel = blockIdx.y * 32 + threadIdx.x % 32;
  const u32 runs = (s.width + RUN - 1) / RUN, run = blockIdx.x * 4 + threadIdx.x / 32;
  if (channel >= channels || run >= s.pixels / s.width * runs) return;
  const u32 first = run / runs * s.width + run % runs * RUN, last = run / runs * s.width + s.width;
  const Pixel pixel = read_by<T>(s, first);
  const T* from = (const T*)((const char*)s.x + offset(pixel)) + channel / s.outputs;
  const T* weight = (const T*)s.weight + channel;
  constexpr int SPAN = (RUN - 1) * STRIDE + (TAPS - 1) * DILATION + 1;
  // inside of the image, nothing has to be asked of single samples
  const bool whole = pixel.w >= 0 && pixel.w + SPAN <= (int)s.x_width;
  T acc[RUN];
#pragma unroll
  for (int i = 0; i < RUN; i++) acc[i] = 0;
  for (int row = 0; row < s.kernel_rows; row++) {
    const bool in_row = (u32)(pixel.z + row * s.dilation_rows) < s.x_height;
    auto sample = [&](int column) {
      return in_row && (u32)(pixel.w + column) < s.x_width ? from[column * s.x_column] : T(0);
    };
    if constexpr (TAPS > 0) {
      T samples[SPAN];
      if (whole && in_row) {
#pragma unroll
        for (int i = 0; i < SPAN; i++) samples[i] = from[i * s.x_column];
      } else {
#pragma unroll
        for (int i = 0; i < SPAN; i++) samples[i] = sample(i);
      }
#pragma unroll
      for (int tap = 0; tap < TAPS; tap++) {
        const T by = weight[(i64)tap * (int)channels];
#pragma unroll
        for (int i = 0; i < RUN; i++) acc[i] = fma(samples[i * STRIDE + tap * DILATION], by, acc[i]);
      }
      weight += (i64)TAPS * (int)channels;
    } else
      for (int tap = 0; tap < s.kernel_columns; tap++, weight += channels)
#pragma unroll
        for (int i = 0; i < RUN; i++)
          acc[i] = fma(sample(i * s.stride_columns + tap * s.dilation_columns), *weight, acc[i]);
    from += s.dilation_rows * s.x_row;
  }
  const T addend = s.bias ? ((const T*)s.bias)[channel] : T(0);
#pragma unroll
  for (int i = 0; i < RUN; i++)
    if (first + i < last) {
      const Place place = place_of(s, first + i);
      written_at<T>(s, place)[channel] = finished_at(s, add(acc[i], addend), place, channel);
    }
}
