// Attention backward in one sweep: logits and dO.v are computed again once, and give every gradient.
//
// A band of key rows is one item of work: it adds up dk and dv of its rows over all tiles of queries that reach them, in
// an order that no band changes, so that the bits do not depend on how many bands or threads there are. The band in which
// a tile's middle lies also writes what belongs to the queries; a tile that two bands reach is computed by both.
#include <vector>

#include "attention_sums.h"

namespace hamlet::HAMLET_ISA {
namespace {

template <class T, class S>
struct Workspace {
    Buffer<S> query_rows, query_lanes, query_summands, out_rows, out_lanes, out_summands;
    Buffer<T> d_query, nowhere;
    Packed<T, S> keys, values;
    Sums<T> d_keys, d_values;
    TileWindows<T> windows;
    KeyList<T> list;
    Vector<T> unweighted[CHUNK + PADDING], d_logits[CHUNK + PADDING];
};

// Rows [first, last) of the keys of one source, for some heads of one sample.
struct Band {
    Heads heads;
    int64_t first, last;
};

// One row of tiles of a pair, and the rows of keys that it reaches.
struct Step {
    const Pair* pair;
    int64_t row, begin, end;
};

// A tile of queries of one pair, for all heads of a band.
template <class T, class S>
class TileBackward {
   public:
    TileBackward(const Attention& attention, const Pair& pair, const Band& band, const Tile<T>& tile, bool owned,
                 Workspace<T, S>& work)
        : pair_(pair),
          level_(attention.levels[pair.level]),
          source_(attention.sources[pair.source]),
          band_(band),
          tile_(tile),
          owned_(owned),
          several_(std::count_if(attention.pairs.begin(), attention.pairs.end(),
                                 [&](const Pair& other) { return other.level == pair.level; }) > 1),
          scale_(T(attention.scale)),
          exponent_(SCALED ? T(1) : T(attention.scale * LOG2_E)),
          softness_(T(attention.softness)),
          query_size_(LANES<T> * padded<S>(level_.query.size[4])),
          out_size_(LANES<T> * padded<S>(level_.out.size[4])),
          d_query_size_(LANES<T> * padded<T>(level_.query.size[4])),
          work_(work) {}

    void run() {
        const int64_t heads = band_.heads.count;
        pack();
        work_.windows.measure(tile_, extent_of(level_.extent, band_.heads.sample, level_.query),
                              extent_of(source_.extent, band_.heads.sample, source_.key),
                              pair_.max_radius + softness_);
        std::fill_n(work_.d_query.room(heads * d_query_size_), heads * d_query_size_, T(0));
        for (int64_t head = 0; head < heads; ++head) run(head);
        if (owned_) write_queries();
    }

   private:
    static constexpr bool SCALED = std::is_same_v<S, T>;  // whether the packed queries hold the scale: two bytes cannot

    const Pair& pair_;
    const QueryLevel& level_;
    const KeyLevel& source_;
    const Band& band_;
    const Tile<T>& tile_;
    const bool owned_, several_;  // whether several pairs add to the gradient of the level's queries
    const T scale_, exponent_, softness_;  // exponent: what makes logits of the packed queries' products
    const int64_t query_size_, out_size_, d_query_size_;  // of a tile's rows
    Workspace<T, S>& work_;

    bool listed_ = false;  // whether the list holds every key of the tile
    int64_t head_, row_, column_;
    Vector<T> lse_, gate_, d_lse_;

    // Queries and the gradient of the output, with the queries in the lanes and as summands.
    void pack() {
        const int64_t heads = band_.heads.count, channels = level_.query.size[4], out_channels = level_.out.size[4];
        S *rows = work_.query_rows.room(heads * query_size_), *lanes = work_.query_lanes.room(heads * query_size_);
        S *out_rows = work_.out_rows.room(heads * out_size_), *out_lanes = work_.out_lanes.room(heads * out_size_);
        S* const summands = work_.query_summands.room(heads * query_size_);
        S* const out_summands = work_.out_summands.room(heads * out_size_);
        for (int64_t head = 0; head < heads; ++head)
            pack_tile(tile_, level_.query, band_.heads.plane(head), rows + head * query_size_);
        for (int64_t head = 0; head < heads; ++head)
            pack_tile(tile_, level_.out, band_.heads.plane(head), out_rows + head * out_size_);
        for (int64_t head = 0; head < heads; ++head, rows += query_size_, out_rows += out_size_) {
            if constexpr (SCALED) transpose(rows, channels, lanes + head * query_size_, T(scale_ * LOG2_E));
            else transpose(rows, channels, lanes + head * query_size_);
            transpose(out_rows, out_channels, out_lanes + head * out_size_);
            make_summands(rows, channels, summands + head * query_size_);
            make_summands(out_rows, out_channels, out_summands + head * out_size_);
        }
    }

    void run(int64_t head) {
        head_ = head;
        const Plane plane = band_.heads.plane(head);
        const Radii<T> radii(tile_, pair_.radius, plane, T(pair_.max_radius));
        if (head == 0 || (pair_.radius && pair_.radius.stride[3] != 0)) {
            work_.windows.make(radii.clamped, softness_);
            listed_ = false;
        }
        lse_ = tile_.read(pair_.lse, plane, T(0), T(0)) * T(LOG2_E);
        gate_ = tile_.read(pair_.gate, plane, T(1), T(0));
        d_lse_ = tile_.read(pair_.d_lse, plane, T(0), T(0));

        // delta sums over all keys before any gradient is known. What one chunk holds is not computed twice.
        Vector<T> delta = {}, d_radius = {};
        start();
        next();
        delta += weigh_deltas();
        if (const bool several = !finished(); several) {
            for (; !finished(); delta += weigh_deltas()) next();
            start();
            next();
        }
        differentiate(delta, d_radius);
        while (!finished()) {
            next();
            differentiate(delta, d_radius);
        }
        if (owned_) write(plane, radii, delta, d_radius);
    }

    void start() {
        row_ = work_.windows.rows.begin;
        column_ = work_.windows.columns.begin;
    }

    bool finished() const { return listed_ || row_ == work_.windows.rows.end; }

    // Take the next chunk of keys and compute its exp(scale q.k - lse), unweighted, and dO.v.
    void next() {
        KeyList<T>& list = work_.list;
        if (!listed_) {
            const bool begun = row_ == work_.windows.rows.begin && column_ == work_.windows.columns.begin;
            list.fill(work_.windows.rows, work_.windows.columns, row_, column_, work_.keys.ring, band_.first, band_.last);
            listed_ = begun && row_ == work_.windows.rows.end;
        }
        multiply_keys(work_.query_lanes.room(0) + head_ * query_size_, lse_);
        multiply_values(work_.out_lanes.room(0) + head_ * out_size_);
    }

    HAMLET_APART void multiply_keys(const S* queries, Vector<T> lse) {
        const KeyList<T>& list = work_.list;
        Vector<T>* const unweighted = work_.unweighted;
        const T exponent = exponent_;
        const Vector<T> nothing = broadcast<T>(-std::numeric_limits<T>::infinity());
        multiply(queries, list, work_.keys.rows(head_), source_.key.size[4],
                 [&](int k, Vector<T> product) {
                     const Vector<T> scaled = SCALED ? product : exponent * product;
                     const Vector<T> logit = where_not_negative<T>(list.weights[k], scaled, nothing);
                     unweighted[k] = exp2_of_negative<T>(logit - lse);
                 });
    }

    HAMLET_APART void multiply_values(const S* gradients) {
        const KeyList<T>& list = work_.list;
        Vector<T>* const d_logits = work_.d_logits;
        multiply(gradients, list, work_.values.rows(head_), source_.value.size[4],
                 [&](int k, Vector<T> product) {
                     d_logits[k] = where_not_negative<T>(list.weights[k], product, Vector<T>{});
                 });
    }

    Vector<T> weigh_deltas() const {
        Vector<T> total = {};
        for (int k = 0; k < work_.list.count; ++k)
            total += max<T>(work_.list.weights[k], Vector<T>{}) * work_.unweighted[k] * work_.d_logits[k];
        return total;
    }

    // Turn the chunk's buffers into gate P and scale dS, and add what they give.
    void differentiate(Vector<T> delta, Vector<T>& d_radius) {
        const KeyList<T>& list = work_.list;
        Vector<T> d_radius_now = d_radius;
        for (int k = 0; k < list.count; ++k) {
            const Vector<T> weight = list.weights[k], unweighted = work_.unweighted[k];
            const Vector<T> d_unweighted = unweighted * (gate_ * (work_.d_logits[k] - delta) + d_lse_);
            // On the ramp: the weight is below 1, and the key exists.
            const Vector<T> on_ramp = where_not_negative<T>(weight - 1, Vector<T>{}, d_unweighted);
            d_radius_now += where_not_negative<T>(weight, on_ramp, Vector<T>{});
            work_.d_logits[k] = where_not_negative<T>(weight, scale_ * weight * d_unweighted, Vector<T>{});
            work_.unweighted[k] = where_not_negative<T>(weight, gate_ * weight * unweighted, Vector<T>{});
        }
        d_radius = d_radius_now;
        const int64_t channels = level_.query.size[4], out_channels = level_.out.size[4];
        if (owned_) {
            T* d_query = work_.d_query.room(0) + head_ * d_query_size_;
            const Rows<S> keys = work_.keys.rows(head_);
            if (work_.keys.finite) weigh<T, true>(list, work_.d_logits, keys, channels, d_query);
            else weigh<T, false>(list, work_.d_logits, keys, channels, d_query);
        }
        T* nowhere = work_.nowhere.room(std::max(padded<T>(channels), padded<T>(out_channels)));
        scatter(list, work_.d_logits, work_.query_summands.room(0) + head_ * query_size_, channels, work_.d_keys.rows(head_),
                nowhere);
        scatter(list, work_.unweighted, work_.out_summands.room(0) + head_ * out_size_, out_channels,
                work_.d_values.rows(head_), nowhere);
    }

    void write(Plane plane, const Radii<T>& radii, Vector<T> delta, Vector<T> d_radius) const {
        if (pair_.d_gate) tile_.write(pair_.d_gate, plane, delta);
        if (pair_.d_radius) {
            const Vector<T> outside = min<T>(radii.own - T(0.5), T(pair_.max_radius) - radii.own);
            tile_.write(pair_.d_radius, plane, where_not_negative<T>(outside, d_radius / softness_, Vector<T>{}));
        }
    }

    void write_queries() const {
        const View& view = level_.d_query;
        const int64_t channels = view.size[4], pitch = padded<T>(channels);
        with_storage<T>(view.dtype, [&](auto* storage) {
            using Stored = std::remove_pointer_t<decltype(storage)>;
            for (int lane = 0; lane < LANES<T>; ++lane)
                for (int64_t head = 0; tile_.has(lane) && head < band_.heads.count; ++head) {
                    T* row = work_.d_query.room(0) + head * d_query_size_ + lane * pitch;
                    Stored* to = reinterpret_cast<Stored*>(view.data) +
                            band_.heads.plane(head).offset(view, tile_.y + lane / tile_.WIDTH, tile_.x + lane % tile_.WIDTH);
                    for (int64_t d = 0; d < channels; d += LANES<T>) {
                        const Mask<T> mask = first_lanes<T>(channels - d);
                        const Vector<T> before = several_ ? load_where(to + d, mask) : Vector<T>{};
                        store_where(to + d, before + load(row + d), mask);
                    }
                }
        });
    }
};

template <class T, class S>
class Backward {
   public:
    explicit Backward(const Attention& attention) : attention_(attention) {}

    void run() const {
        // Two sources add to the same queries' gradient: one source after the other.
        std::vector<std::vector<Band>> bands;
        std::vector<int64_t> counts;
        for (int source = 0; source < int(attention_.sources.size()); ++source) {
            bands.push_back(cut(source));
            counts.push_back(int64_t(bands.back().size()));
        }
        parallel_phases(attention_.threads, counts, [&](size_t source, int64_t item) {
            Workspace<T, S>& workspace = of_this_thread<Workspace<T, S>>();
            const ProductsInUse<S> products;
            run(int(source), bands[source][item], workspace);
        });
    }

   private:
    const Attention& attention_;

    std::vector<Band> cut(int source) const {
        const View& key = attention_.sources[source].key;
        std::vector<Band> bands;
        if (key.size[1] == 0 || key.size[2] == 0) return bands;
        const int64_t wanted = 2 * attention_.threads;
        const std::vector<Heads> groups = groups_of(key.size[0], key.size[3], bytes_of_head(source), wanted);
        const int64_t rows = key.size[1], parts = parts_of(int64_t(groups.size()), rows, wanted);
        for (const Heads& heads : groups)
            for (int64_t part = 0; part < parts; ++part)
                bands.push_back({heads, rows * part / parts, rows * (part + 1) / parts});
        return bands;
    }

    // Of the packed rows that the tiles of one row reach, and of their gradients.
    int64_t bytes_of_head(int source) const {
        int64_t bytes = 1;
        for (const Pair& pair : attention_.pairs)
            if (pair.source == source)
                bytes = std::max(bytes, bytes_reached<T, S>(attention_, pair) + bytes_reached<T, T>(attention_, pair));
        return bytes;
    }

    // The rows of tiles that reach a band, in the order in which they are done.
    std::vector<Step> steps_of(int source, const Band& band) const {
        std::vector<Step> steps;
        for (const Pair& pair : attention_.pairs) {
            if (pair.source != source) continue;
            const QueryLevel& level = attention_.levels[pair.level];
            const Extent queries = extent_of(level.extent, band.heads.sample, level.query);
            for (int64_t row = 0; row * TILE_HEIGHT<T> < queries.height; ++row) {
                Step step{&pair, row, 0, 0};
                reached<T>(attention_, pair, band.heads.sample, row, step.begin, step.end);
                if (step.begin < band.last && step.end > band.first) steps.push_back(step);
            }
        }
        std::stable_sort(steps.begin(), steps.end(), [](const Step& a, const Step& b) { return a.begin < b.begin; });
        return steps;
    }

    void run(int number, const Band& band, Workspace<T, S>& work) const {
        const KeyLevel& source = attention_.sources[number];
        const std::vector<Step> steps = steps_of(number, band);
        int64_t capacity = 1, end = 0;
        for (const Step& step : steps) {
            end = std::max(end, step.end);
            capacity = std::max(capacity, end - step.begin);
        }
        const int64_t first = steps.empty() ? 0 : steps[0].begin;
        const int64_t width = extent_of(source.extent, band.heads.sample, source.key).width;
        work.keys.begin(source.key, band.heads, first, capacity, width);
        work.values.begin(source.value, band.heads, first, capacity, width);
        work.d_keys.begin(source.d_key, band.heads, work.keys.ring);
        work.d_values.begin(source.d_value, band.heads, work.keys.ring);
        int64_t written = band.first;
        const auto write = [&](int64_t row) {
            row = std::min(row, band.last);
            if (row <= written) return;
            work.d_keys.write(written, row);
            work.d_values.write(written, row);
            written = row;
        };
        for (const Step& step : steps) {
            write(step.begin);
            work.keys.reach(source.key, step.end);
            work.values.reach(source.value, step.end);
            work.d_keys.open(step.end);
            work.d_values.open(step.end);
            run(step, band, work);
        }
        write(band.last);
    }

    void run(const Step& step, const Band& band, Workspace<T, S>& work) const {
        const QueryLevel& level = attention_.levels[step.pair->level];
        const KeyLevel& source = attention_.sources[step.pair->source];
        const Extent queries = extent_of(level.extent, band.heads.sample, level.query);
        const Extent keys = extent_of(source.extent, band.heads.sample, source.key);
        const double middle = Axis{queries.height, keys.height}.centre(step.row * TILE_HEIGHT<T>);
        const int64_t home = std::clamp<int64_t>(int64_t(middle), 0, keys.height - 1);
        const bool owned = home >= band.first && home < band.last;
        for (int64_t x = 0; x < queries.width; x += TILE_WIDTH<T>) {
            const Tile<T> tile(step.row * TILE_HEIGHT<T>, x, level.query, queries);
            TileBackward<T, S>(attention_, *step.pair, band, tile, owned, work).run();
        }
    }
};

}  // namespace

void attention_backward(const Attention& attention) {
#if defined(__AMX_BF16__)
    if (is_bfloat16(attention)) Backward<float, BFloat16>(attention).run();
    else avx512::attention_backward(attention);
#else
    if (attention.sources[0].key.dtype == DType::float64) Backward<double, double>(attention).run();
    else Backward<float, float>(attention).run();
#endif
}

}  // namespace hamlet::HAMLET_ISA
