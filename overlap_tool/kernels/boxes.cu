// Copies between pieces of maps whose channels are neighbours, in words of 4 or 16 bytes: COUNT of them go together,
// none of which writes what another reads or writes.

using i64 = long long;
using u32 = unsigned;

struct Box {
  const void* x;
  void* y;
  i64 x_image, x_row, x_column, y_image, y_row, y_column;  // strides, in words
  u32 rows, columns, words, count;  // words of a pixel, and of all
};

template <int COUNT>
struct Boxes {
  Box of[COUNT];
};

template <typename W, int COUNT>
__global__ void __launch_bounds__(256) copied(const __grid_constant__ Boxes<COUNT> boxes) {
  const Box& b = boxes.of[blockIdx.y];
  const u32 i = blockIdx.x * 256 + threadIdx.x;
  if (i >= b.count) return;
  const u32 word = i % b.words, pixel = i / b.words;
  const u32 column = pixel % b.columns, row = pixel / b.columns % b.rows, image = pixel / b.columns / b.rows;
  ((W*)b.y)[image * b.y_image + row * b.y_row + column * b.y_column + word] =
      ((const W*)b.x)[image * b.x_image + row * b.x_row + column * b.x_column + word];
}
