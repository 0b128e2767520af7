// Attention backward in one sweep: logits and dO.v are computed again once, and give every gradient.
//
// A band of key rows is one item of work: it adds up dk and dv of its rows over all tiles of queries that reach them, in
// order, so that the bits do not depend on how many bands or threads there are. The band in which a tile's middle lies
// also writes what belongs to the queries; a tile that two bands reach is computed by both.
#include <vector>

#include "attention.h"

namespace hamlet::HAMLET_ISA {
namespace {

template <class T>
struct Workspace {
    Buffer<T> query_rows, query_lanes, out_rows, out_lanes, d_query, d_keys, d_values, nowhere, total, zeros;
    Packed<T> keys, values;
    AxisBuffers<T> row_weights, column_weights;
    KeyList<T> list;
    Vector<T> unweighted[CHUNK + PADDING], d_logits[CHUNK + PADDING];
};

// Rows [first, last) of the keys of one source, for one sample and head.
struct Band {
    Plane plane;
    int64_t first, last;
};

template <class T>
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
            static thread_local Workspace<T> workspace;
            run(int(source), bands[source][item], workspace);
        });
    }

   private:
    const Attention& attention_;

    std::vector<Band> cut(int source) const {
        const View& key = attention_.sources[source].key;
        const int64_t planes = key.size[0] * key.size[3], rows = key.size[1];
        std::vector<Band> bands;
        if (planes == 0 || rows == 0 || key.size[2] == 0) return bands;
        const int64_t count = std::clamp<int64_t>(ceiling(2 * attention_.threads, planes), 1, rows);
        for (int64_t sample = 0; sample < key.size[0]; ++sample)
            for (int64_t band = 0; band < count; ++band)
                for (int64_t head = 0; head < key.size[3]; ++head)
                    bands.push_back({{sample, head}, rows * band / count, rows * (band + 1) / count});
        return bands;
    }

    void run(int number, const Band& band, Workspace<T>& work) const {
        const KeyLevel& source = attention_.sources[number];
        const Extent valid = extent_of(source.extent, band.plane.sample, source.key);
        const int64_t pixels = (band.last - band.first) * valid.width;
        const Rows<T> d_keys{work.d_keys.room(pixels * padded<T>(source.key.size[4])), padded<T>(source.key.size[4])};
        const Rows<T> d_values{work.d_values.room(pixels * padded<T>(source.value.size[4])),
                               padded<T>(source.value.size[4])};
        std::fill_n(d_keys.data, pixels * d_keys.pitch, T(0));
        std::fill_n(d_values.data, pixels * d_values.pitch, T(0));
        for (const Pair& pair : attention_.pairs)
            if (pair.source == number) run(pair, source, band, d_keys, d_values, work);
        write(source.d_key, band, valid, d_keys, work);
        write(source.d_value, band, valid, d_values, work);
    }

    // The band's rows of a gradient, 0 beyond the extent.
    void write(const View& view, const Band& band, Extent valid, Rows<T> rows, Workspace<T>& work) const {
        T* zeros = work.zeros.room(rows.pitch);
        std::fill_n(zeros, rows.pitch, T(0));
        for (int64_t y = band.first; y < band.last; ++y)
            for (int64_t x = 0; x < view.size[2]; ++x) {
                const bool exists = y < valid.height && x < valid.width;
                write_row(view, band.plane.offset(view, y, x),
                          exists ? rows.at((y - band.first) * valid.width + x) : zeros, view.size[4]);
            }
    }

    void run(const Pair& pair, const KeyLevel& source, const Band& band, Rows<T> d_keys, Rows<T> d_values,
             Workspace<T>& work) const;
};

// Everything about one pair, sample, head and band that the tiles share.
template <class T>
struct Context {
    const Pair& pair;
    const QueryLevel& level;
    const KeyLevel& source;
    const Band& band;
    Extent queries, keys;
    T scale, softness;
    Rows<T> d_keys, d_values;  // so that an index into the packed rows finds the band's
    Packed<T>&packed_keys, &packed_values;
};

template <class T>
class TileBackward {
   public:
    TileBackward(const Context<T>& context, const Tile<T>& tile, bool owned, Workspace<T>& work)
        : context_(context),
          tile_(tile),
          owned_(owned),
          work_(work),
          radii_(tile, context.pair.radius, context.band.plane, T(context.pair.max_radius)) {}

    void run() {
        const Plane plane = context_.band.plane;
        windows_.make(tile_, context_.queries, context_.keys, radii_, context_.softness, work_.row_weights,
                      work_.column_weights);
        const Vector<T> lse = tile_.read(context_.pair.lse, plane, T(0), T(0));
        lse_ = lse * T(LOG2_E);
        gate_ = tile_.read(context_.pair.gate, plane, T(1), T(0));
        d_lse_ = tile_.read(context_.pair.d_lse, plane, T(0), T(0));

        pack_queries();
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
        if (owned_) write(delta, d_radius);
    }

   private:
    const Context<T>& context_;
    const Tile<T>& tile_;
    const bool owned_;
    Workspace<T>& work_;
    const Radii<T> radii_;
    TileWindows<T> windows_;
    Vector<T> lse_, gate_, d_lse_;
    int64_t row_, column_;

    void start() {
        row_ = windows_.rows.begin;
        column_ = windows_.columns.begin;
        std::fill_n(work_.d_query.room(LANES<T> * context_.packed_keys.rows(0).pitch),
                    LANES<T> * context_.packed_keys.rows(0).pitch, T(0));
    }

    bool finished() const { return row_ == windows_.rows.end; }

    // Take the next chunk of keys and compute its exp(scale q.k - lse), unweighted, and dO.v.
    void next() {
        KeyList<T>& list = work_.list;
        list.fill(windows_.rows, windows_.columns, row_, column_, context_.packed_keys.ring,
                  context_.band.first, context_.band.last);
        multiply(work_.query_lanes.room(0), context_.packed_keys.rows(0), context_.source.key.size[4], list.index,
                 list.count, [&](int k, Vector<T> product) {
                     const Vector<T> nothing = broadcast<T>(-std::numeric_limits<T>::infinity());
                     const Vector<T> logit = where_not_negative<T>(list.weights[k], product, nothing);
                     work_.unweighted[k] = exp2_of_negative<T>(logit - lse_);
                 });
        multiply(work_.out_lanes.room(0), context_.packed_values.rows(0), context_.source.value.size[4], list.index,
                 list.count, [&](int k, Vector<T> product) {
                     work_.d_logits[k] = where_not_negative<T>(list.weights[k], product, Vector<T>{});
                 });
    }

    Vector<T> weigh_deltas() const {
        Vector<T> total = {};
        for (int k = 0; k < work_.list.count; ++k)
            total += max<T>(work_.list.weights[k], Vector<T>{}) * work_.unweighted[k] * work_.d_logits[k];
        return total;
    }

    void pack_queries() {
        const View &query = context_.level.query, &out = context_.level.out;
        const int64_t pitch = padded<T>(query.size[4]), out_pitch = padded<T>(out.size[4]);
        T* rows = work_.query_rows.room(LANES<T> * pitch);
        T* out_rows = work_.out_rows.room(LANES<T> * out_pitch);
        pack_tile(tile_, query, context_.band.plane, rows);
        pack_tile(tile_, out, context_.band.plane, out_rows);
        transpose(rows, query.size[4], T(context_.scale * LOG2_E), work_.query_lanes.room(LANES<T> * pitch));
        transpose(out_rows, out.size[4], T(1), work_.out_lanes.room(LANES<T> * out_pitch));
        // Where P or dS is 0 the product with these rows must be 0 too, whatever they hold.
        alignas(64) T gates[LANES<T>];
        store(gates, gate_);
        for (int lane = 0; lane < LANES<T>; ++lane) {
            for (int64_t d = 0; d < pitch; ++d) rows[lane * pitch + d] *= context_.scale;
            for (int64_t d = 0; d < out_pitch; ++d) out_rows[lane * out_pitch + d] *= gates[lane];
        }
        clean(rows, LANES<T> * pitch);
        clean(out_rows, LANES<T> * out_pitch);
    }

    // Turn the chunk's buffers into P and dS, and add what they give.
    void differentiate(Vector<T> delta, Vector<T>& d_radius) {
        const KeyList<T>& list = work_.list;
        Vector<T> d_radius_now = d_radius;
        for (int k = 0; k < list.count; ++k) {
            const Vector<T> weight = list.weights[k], unweighted = work_.unweighted[k];
            const Vector<T> d_unweighted = unweighted * (gate_ * (work_.d_logits[k] - delta) + d_lse_);
            // On the ramp: the weight is below 1, and the key exists.
            const Vector<T> on_ramp = where_not_negative<T>(weight - 1, Vector<T>{}, d_unweighted);
            d_radius_now += where_not_negative<T>(weight, on_ramp, Vector<T>{});
            work_.d_logits[k] = where_not_negative<T>(weight, weight * d_unweighted, Vector<T>{});
            work_.unweighted[k] = max<T>(weight, Vector<T>{}) * unweighted;
        }
        d_radius = d_radius_now;
        const Context<T>& c = context_;
        if (owned_) {
            T* d_query = work_.d_query.room(0);
            if (c.packed_keys.finite) weigh<T, true>(list, work_.d_logits, c.packed_keys.rows(0), c.level.query.size[4], d_query);
            else weigh<T, false>(list, work_.d_logits, c.packed_keys.rows(0), c.level.query.size[4], d_query);
        }
        const int64_t widest = std::max(c.d_keys.pitch, c.d_values.pitch);
        T* nowhere = work_.nowhere.room(widest);
        scatter(list, work_.d_logits, work_.query_rows.room(0), c.level.query.size[4], c.d_keys, nowhere);
        scatter(list, work_.unweighted, work_.out_rows.room(0), c.level.out.size[4], c.d_values, nowhere);
    }

    void write(Vector<T> delta, Vector<T> d_radius) {
        const Plane plane = context_.band.plane;
        const Pair& pair = context_.pair;
        const View& d_query = context_.level.d_query;
        const int64_t channels = d_query.size[4], pitch = padded<T>(channels);
        for (int lane = 0; lane < LANES<T>; ++lane) {
            if (!tile_.has(lane)) continue;
            T* row = work_.d_query.room(0) + lane * pitch;
            const int64_t offset =
                plane.offset(d_query, tile_.y + lane / tile_.WIDTH, tile_.x + lane % tile_.WIDTH);
            T* total = work_.total.room(pitch);
            read_row(d_query, offset, total, channels);
            for (int64_t d = 0; d < channels; ++d) total[d] += context_.scale * row[d];
            write_row(d_query, offset, total, channels);
        }
        if (pair.d_gate) tile_.write(pair.d_gate, plane, delta);
        if (pair.d_radius) {
            const Vector<T> outside = min<T>(radii_.own - T(0.5), T(pair.max_radius) - radii_.own);
            tile_.write(pair.d_radius, plane,
                        where_not_negative<T>(outside, d_radius / context_.softness, Vector<T>{}));
        }
    }
};

template <class T>
void Backward<T>::run(const Pair& pair, const KeyLevel& source, const Band& band, Rows<T> d_keys, Rows<T> d_values,
                      Workspace<T>& work) const {
    const QueryLevel& level = attention_.levels[pair.level];
    Context<T> context{pair, level, source, band, extent_of(level.extent, band.plane.sample, level.query),
                       extent_of(source.extent, band.plane.sample, source.key), T(attention_.scale),
                       T(attention_.softness), d_keys, d_values, work.keys, work.values};
    const Axis axis{context.queries.height, context.keys.height};
    const double reach = pair.max_radius + attention_.softness;
    const int64_t tile_rows = ceiling(context.queries.height, TILE_HEIGHT<T>);
    // The tiles that reach the band, and the keys that these reach.
    int64_t first = tile_rows, last = 0, begin = 0, end = 0;
    const auto rows_of = [&](int64_t row, int64_t& from, int64_t& to) {
        const int64_t y = row * TILE_HEIGHT<T>;
        axis.reached(y, std::min(y + TILE_HEIGHT<T>, axis.queries) - 1, reach, from, to);
    };
    for (int64_t row = 0; row < tile_rows; ++row) {
        int64_t from, to;
        rows_of(row, from, to);
        if (from >= band.last || to <= band.first) continue;
        if (first == tile_rows) begin = from;
        first = std::min(first, row);
        last = row + 1;
        end = std::max(end, to);
    }
    if (first >= last) return;
    const Heads heads{band.plane.sample, band.plane.head, 1};
    work.keys.begin(source.key, heads, begin, end - begin, context.keys.width);
    work.values.begin(source.value, heads, begin, end - begin, context.keys.width);
    // Lists index keys from the first packed row; the band's own rows begin later.
    const int64_t skipped = (band.first - begin) * context.keys.width;
    context.d_keys.data -= skipped * d_keys.pitch;
    context.d_values.data -= skipped * d_values.pitch;
    for (int64_t row = first; row < last; ++row) {
        int64_t from, to;
        rows_of(row, from, to);
        work.keys.reach(source.key, to);
        work.values.reach(source.value, to);
        const double middle = axis.centre(row * TILE_HEIGHT<T>);
        const int64_t home = std::clamp<int64_t>(int64_t(middle), 0, axis.keys - 1);
        const bool owned = home >= band.first && home < band.last;
        for (int64_t x = 0; x < context.queries.width; x += TILE_WIDTH<T>) {
            const Tile<T> tile(row * TILE_HEIGHT<T>, x, level.query, context.queries);
            TileBackward<T>(context, tile, owned, work).run();
        }
    }
}

}  // namespace

void attention_backward(const Attention& attention) {
    if (attention.sources[0].key.dtype == DType::float64) Backward<double>(attention).run();
    else Backward<float>(attention).run();
}

}  // namespace hamlet::HAMLET_ISA
