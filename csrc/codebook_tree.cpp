// Builds codebook trees, on the host; see Note [Codebook tree].
#include "codebook_tree.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>

namespace sctrt {
namespace {

using Tree = CodebookTree;
using Point = std::array<double, Tree::kDimensions>;  // relative to the tree's centre
using List = std::vector<std::int32_t>;               // codes, as numbers of Builder::points_, ascending

// Lists that are not worth splitting: among the codes, and away from them, where latents are rare.
constexpr std::size_t kFew = 2 * CodebookGroup::kSize, kFewAway = 128;
constexpr std::size_t kMost = 512;  // a longer list is not kept: comparing all codes in blocks is about as fast
// Tests of one code in one cell that may be spent on the innermost box and on each of those around it. Ordinary
// codebooks take a third; codebooks with many codes equally near to many places (all on a circle, say) spend it.
constexpr std::int64_t kTestsWithin = 20'000'000, kTestsAround = 3'000'000;
constexpr std::int64_t kTestsASplit = 16;  // that a code of a cell takes when the cell is split, about

// Rounding of a float32 sum of three squared differences, relative, is below 5 * 2^-24, and of either of two sums that
// are compared; squares that underflow lose less than kTiny.
constexpr double kRounding = 8.0 / (1 << 24), kTiny = 1e-44;
// z - centre in float32 is off by at most this part of itself.
constexpr double kShift = 1.0 / (1 << 23);
constexpr double kDouble = 1e-14;  // several roundings of a float64, relative

struct Box {
  Point low, high;
};

// Cells of one node (or one box's root) along an axis, and the first of them.
struct Place {
  int box;
  int bits;                                           // log2 of the units along an axis of the place
  std::array<std::int32_t, Tree::kDimensions> first;  // units
};

// A cell whose list is still long.
struct Pending {
  std::int64_t cell;
  Place place;
  List list;
};

// The cells that one Pending becomes. Numbers of cells and groups count from the Split's own first.
struct Split {
  std::vector<CodebookCell> cells;
  std::vector<CodebookGroup> groups;
  std::vector<Pending> pending;
  std::int64_t tests = 0;
};

class Builder {
 public:
  Builder(const float* codes, std::int64_t count) : codes_(codes) {
    for (std::int64_t i = 0; i < count; ++i)
      if (std::isfinite(code(i, 0)) && std::isfinite(code(i, 1)) && std::isfinite(code(i, 2)))
        indices_.push_back(static_cast<std::int32_t>(i));
    drop_duplicates();
    usable_ = !indices_.empty() && lay_out();
  }

  CodebookTreeData build() {
    if (!usable_) return {};
    constexpr std::int64_t kRootCells = std::int64_t{1} << 3 * Tree::kRootBits;
    tree_.cells.resize(kRootCells * Tree::kBoxes);
    List all(points_.size());
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int32_t>(i);
    for (int box = 0; box < Tree::kBoxes; ++box) {
      tests_left_ = box == 0 ? kTestsWithin : kTestsAround;
      std::vector<Pending> pending{{kRootCells * box, {box, Tree::kBits, {}}, all}};
      for (int bits = Tree::kRootBits; !pending.empty(); bits = Tree::kNodeBits) pending = split_all(pending, bits);
    }
    return std::move(tree_);
  }

 private:
  float code(std::int64_t i, int d) const { return codes_[i * Tree::kDimensions + d]; }

  // Of equal codes the lowest index is the nearest.
  void drop_duplicates() {
    const auto values = [&](std::int32_t i) { return std::array<float, 3>{code(i, 0), code(i, 1), code(i, 2)}; };
    const auto less = [&](std::int32_t a, std::int32_t b) {
      return values(a) < values(b) || (values(a) == values(b) && a < b);
    };
    std::sort(indices_.begin(), indices_.end(), less);
    const auto same = [&](std::int32_t a, std::int32_t b) { return values(a) == values(b); };
    indices_.erase(std::unique(indices_.begin(), indices_.end(), same), indices_.end());
    std::sort(indices_.begin(), indices_.end());
  }

  // The innermost box: the codes' middle, and powers of two that hold them.
  bool lay_out() {
    double half[Tree::kDimensions], widest = 0;
    for (int d = 0; d < Tree::kDimensions; ++d) {
      float low = code(indices_[0], d), high = low;
      for (std::int32_t i : indices_) {
        low = std::min(low, code(i, d));
        high = std::max(high, code(i, d));
      }
      tree_.centre[d] = static_cast<float>((double{low} + double{high}) / 2);
      half[d] = std::max(double{high} - tree_.centre[d], tree_.centre[d] - double{low});
      widest = std::max(widest, half[d]);
    }
    constexpr double kLeast = 1e-15, kLargest = 1e12;  // squares stay normal in the innermost and the outermost box
    constexpr double kFlattest = 1.0 / 4;              // of the widest axis
    for (int d = 0; d < Tree::kDimensions; ++d) {
      if (!(widest > kLeast && widest + std::abs(double{tree_.centre[d]}) < kLargest)) return false;
      half_[d] = std::exp2(std::ceil(std::log2(std::max(half[d], widest * kFlattest) * 1.001)));
      tree_.scale[d] = static_cast<float>(Tree::kHalf / half_[d]);
    }
    for (std::int32_t i : indices_)
      points_.push_back({code(i, 0) - double{tree_.centre[0]}, code(i, 1) - double{tree_.centre[1]},
                         code(i, 2) - double{tree_.centre[2]}});
    return true;
  }

  // Splits every pending cell and appends what they become, in their order; returns the cells that are pending next.
  std::vector<Pending> split_all(const std::vector<Pending>& pending, int bits) {
    const bool root = bits == Tree::kRootBits;
    std::int64_t cost = 0;
    for (const Pending& item : pending) cost += static_cast<std::int64_t>(item.list.size()) * kTestsASplit;
    if (cost > tests_left_) {
      for (const Pending& item : pending) keep(item.list, tree_.cells[item.cell], tree_.groups);
      return {};
    }
    std::vector<Split> splits(pending.size());
#pragma omp parallel for schedule(dynamic)
    for (std::size_t i = 0; i < pending.size(); ++i) {
      splits[i].cells.resize(std::size_t{1} << 3 * bits);
      divide(pending[i].place, pending[i].list, pending[i].place, bits, splits[i]);
    }
    std::vector<Pending> next;
    for (std::size_t i = 0; i < pending.size(); ++i) {
      const std::int64_t first = root ? pending[i].cell : static_cast<std::int64_t>(tree_.cells.size());
      if (!root) {
        tree_.cells[pending[i].cell] = {static_cast<std::int32_t>(first), CodebookCell::kNode};
        tree_.cells.resize(tree_.cells.size() + splits[i].cells.size());
      }
      append(splits[i], first, next);
    }
    return next;
  }

  void append(Split& split, std::int64_t first, std::vector<Pending>& next) {
    const auto shift = static_cast<std::int32_t>(tree_.groups.size());
    for (std::size_t i = 0; i < split.cells.size(); ++i) {
      CodebookCell cell = split.cells[i];
      if (cell.count >= 0) cell.begin += shift;
      tree_.cells[first + static_cast<std::int64_t>(i)] = cell;
    }
    tree_.groups.insert(tree_.groups.end(), split.groups.begin(), split.groups.end());
    for (Pending& item : split.pending) {
      item.cell += first;
      next.push_back(std::move(item));
    }
    tests_left_ -= split.tests;
  }

  // Halves `place` until its list is short or it is one cell of `node`, a grid of 2^bits cells along an axis.
  void divide(const Place& place, const List& parent, const Place& node, int bits, Split& split) const {
    if (hidden(place)) return;
    split.tests += static_cast<std::int64_t>(parent.size());
    const Box box = box_of(place);
    const List list = can_be_nearest(parent, box);
    const int cell_bits = node.bits - bits;
    if (list.size() <= kFew || (list.size() <= kFewAway && !is_near(list, box))) {
      CodebookCell cell;
      keep(list, cell, split.groups);
      fill(place, node, cell_bits, bits, cell, split.cells);
    } else if (place.bits == cell_bits) {
      CodebookCell& cell = split.cells[number(place.first, node, cell_bits, bits)];
      if (cell_bits == 0)
        keep(list, cell, split.groups);
      else
        split.pending.push_back({number(place.first, node, cell_bits, bits), place, list});
    } else {
      for (int octant = 0; octant < 8; ++octant) {
        Place part{place.box, place.bits - 1, place.first};
        for (int d = 0; d < Tree::kDimensions; ++d) part.first[d] += (octant >> d & 1) << part.bits;
        divide(part, list, node, bits, split);
      }
    }
  }

  // No latent looks there: it belongs to a smaller box.
  static bool hidden(const Place& place) {
    const std::int32_t middle = static_cast<std::int32_t>(Tree::kHalf);
    const std::int32_t reach = middle / static_cast<std::int32_t>(Tree::kGrowth);
    for (std::int32_t first : place.first)
      if (first < middle - reach || first + (1 << place.bits) > middle + reach) return false;
    return place.box > 0;
  }

  static std::int64_t number(const std::array<std::int32_t, 3>& units, const Place& node, int cell_bits, int bits) {
    return Tree::within(units[0] - node.first[0], units[1] - node.first[1], units[2] - node.first[2], cell_bits, bits);
  }

  // Writes one cell to all cells of the node that lie in `place`.
  static void fill(const Place& place, const Place& node, int cell_bits, int bits, CodebookCell cell,
                   std::vector<CodebookCell>& cells) {
    const std::int32_t step = 1 << cell_bits, size = 1 << place.bits;
    for (std::int32_t z = 0; z < size; z += step)
      for (std::int32_t y = 0; y < size; y += step)
        for (std::int32_t x = 0; x < size; x += step)
          cells[number({place.first[0] + x, place.first[1] + y, place.first[2] + z}, node, cell_bits, bits)] = cell;
  }

  void keep(const List& list, CodebookCell& cell, std::vector<CodebookGroup>& groups) const {
    cell = {0, CodebookCell::kMany};
    if (list.size() > kMost) return;
    cell = {static_cast<std::int32_t>(groups.size()), 0};
    for (std::size_t i = 0; i < list.size(); ++i) {
      const std::size_t lane = i % CodebookGroup::kSize;
      if (lane == 0) {
        groups.push_back({});
        std::fill_n(groups.back().code[0], CodebookGroup::kSize, std::numeric_limits<float>::infinity());
        ++cell.count;
      }
      const std::int32_t index = indices_[list[i]];
      for (int d = 0; d < Tree::kDimensions; ++d) groups.back().code[d][lane] = code(index, d);
      groups.back().index[lane] = index;
    }
  }

  // The points, relative to the centre, of all latents that look into `place`.
  Box box_of(const Place& place) const {
    Box box;
    for (int d = 0; d < Tree::kDimensions; ++d) {
      const double unit = half_[d] / Tree::kHalf * std::pow(double{Tree::kGrowth}, place.box);
      const double low = (place.first[d] - double{Tree::kHalf}) * unit;
      const double high = low + (std::int64_t{1} << place.bits) * unit;
      const double shift = kShift * std::max(std::abs(low), std::abs(high));
      box.low[d] = low - shift;
      box.high[d] = high + shift;
    }
    return box;
  }

  // Whether a code lies in the box or within half its width of it: there latents are to be expected.
  bool is_near(const List& list, const Box& box) const {
    return std::any_of(list.begin(), list.end(), [&](std::int32_t i) {
      for (int d = 0; d < Tree::kDimensions; ++d) {
        const double width = box.high[d] - box.low[d];
        if (points_[i][d] < box.low[d] - width / 2 || points_[i][d] > box.high[d] + width / 2) return false;
      }
      return true;
    });
  }

  // The codes of `list` of which no other one is certainly nearer, wherever in the box. Those nearest to the box's
  // corners are the ones that most others lose to.
  List can_be_nearest(const List& list, const Box& box) const {
    constexpr int kCorners = 1 << Tree::kDimensions;
    double least[kCorners];
    std::int32_t rival[kCorners];
    std::fill_n(least, kCorners, std::numeric_limits<double>::infinity());
    std::vector<double> farthest(list.size());
    for (std::size_t i = 0; i < list.size(); ++i) {
      double low[Tree::kDimensions], high[Tree::kDimensions];
      for (int d = 0; d < Tree::kDimensions; ++d) {
        low[d] = square(points_[list[i]][d] - box.low[d]);
        high[d] = square(points_[list[i]][d] - box.high[d]);
      }
      for (int corner = 0; corner < kCorners; ++corner) {
        const double distance =
            (corner & 1 ? high[0] : low[0]) + (corner & 2 ? high[1] : low[1]) + (corner & 4 ? high[2] : low[2]);
        farthest[i] = std::max(farthest[i], distance);
        if (distance < least[corner]) {
          least[corner] = distance;
          rival[corner] = static_cast<std::int32_t>(i);
        }
      }
    }
    std::sort(rival, rival + kCorners);
    const std::int32_t* end = std::unique(rival, rival + kCorners);
    List left;
    for (std::size_t i = 0; i < list.size(); ++i) {
      const auto beats = [&](std::int32_t r) {
        return nearer(points_[list[r]], points_[list[i]], box, kRounding * (farthest[i] + farthest[r]) + kTiny);
      };
      if (std::none_of(static_cast<const std::int32_t*>(rival), end, beats)) left.push_back(list[i]);
    }
    return left;
  }

  // Whether the squared distance to `rival` is less than that to `point` by more than `margin`, all over the box. The
  // difference is linear, so its least value lies at a corner.
  static bool nearer(const Point& rival, const Point& point, const Box& box, double margin) {
    double least = 0, doubt = margin;
    for (int d = 0; d < Tree::kDimensions; ++d) {
      const double step = rival[d] - point[d], corner = step > 0 ? box.low[d] : box.high[d];
      least += step * (2 * corner - rival[d] - point[d]);
      doubt += kDouble * std::abs(step) * (std::abs(corner) + std::abs(rival[d]) + std::abs(point[d]));
    }
    return least > doubt;
  }

  static double square(double value) { return value * value; }

  const float* codes_;
  std::vector<std::int32_t> indices_;  // of points_, ascending
  std::vector<Point> points_;
  Point half_{};  // of the innermost box
  bool usable_ = false;
  std::int64_t tests_left_ = 0;
  CodebookTreeData tree_{};
};

}  // namespace

CodebookTreeData build_codebook_tree(const float* codes, std::int64_t count) { return Builder(codes, count).build(); }

}  // namespace sctrt
