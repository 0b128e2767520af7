// Attention forward: query tiles against the keys that their radii reach, online softmax over chunks of keys.
#include <vector>

#include "attention.h"

namespace hamlet::HAMLET_ISA {
namespace {

template <class T>
struct Workspace {
    Buffer<T> query_rows, query_lanes, out, total;
    AxisBuffers<T> row_weights, column_weights;
    std::vector<Buffer<T>> keys, values;
    std::vector<Packed<T>> packed_keys, packed_values;
    Ahead ahead;
    KeyList<T> list;
    Vector<T> logits[CHUNK + PADDING];
};

// Rows of tiles [first, last) of one level, for one sample and head.
struct Band {
    int level;
    Plane plane;
    int64_t first, last;
};

template <class T>
class Forward {
   public:
    explicit Forward(const Attention& attention) : attention_(attention) {}

    void run() const {
        std::vector<Band> bands;
        for (int level = 0; level < int(attention_.levels.size()); ++level) cut(level, bands);
        parallel_for(attention_.threads, int64_t(bands.size()), [&](int64_t item) {
            static thread_local Workspace<T> workspace;
            run(bands[item], workspace);
        });
    }

   private:
    const Attention& attention_;

    void cut(int level, std::vector<Band>& bands) const {
        const View& query = attention_.levels[level].query;
        const int64_t tile_rows = ceiling(query.size[1], TILE_HEIGHT<T>), planes = query.size[0] * query.size[3];
        if (planes == 0 || tile_rows == 0 || query.size[2] == 0) return;
        const int64_t wanted = ceiling(4 * attention_.threads, planes);
        const int64_t count = std::clamp<int64_t>(wanted, 1, tile_rows);
        // The heads of one band follow each other: their pixels share pages of memory.
        for (int64_t sample = 0; sample < query.size[0]; ++sample)
            for (int64_t band = 0; band < count; ++band)
                for (int64_t head = 0; head < query.size[3]; ++head)
                    bands.push_back(
                        {level, {sample, head}, tile_rows * band / count, tile_rows * (band + 1) / count});
    }

    void run(const Band& band, Workspace<T>& work) const {
        const QueryLevel& level = attention_.levels[band.level];
        const Extent extent = extent_of(level.extent, band.plane.sample, level.query);
        begin_sources(band, extent, work);
        const int64_t channels = level.out.size[4], pitch = padded<T>(channels);
        T* total = work.total.room(LANES<T> * pitch);
        T* out = work.out.room(LANES<T> * pitch);
        for (int64_t row = band.first; row < band.last; ++row) {
            pack_sources(band, extent, row, work);
            for (int64_t x = 0; x < level.query.size[2]; x += TILE_WIDTH<T>) {
                const Tile<T> tile(row * TILE_HEIGHT<T>, x, level.query, extent);
                std::fill_n(total, LANES<T> * pitch, T(0));
                pack_queries(tile, level.query, band.plane, work);
                look_ahead(band, extent, tile, work);
                for (size_t i = 0; i < attention_.pairs.size(); ++i) {
                    const Pair& pair = attention_.pairs[i];
                    if (pair.level == band.level) attend(pair, int(i), tile, extent, band.plane, out, total, work);
                }
                for (int y = 0; y < tile.rows; ++y)
                    for (int column = 0; column < tile.columns; ++column)
                        write_row(level.out, band.plane.offset(level.out, tile.y + y, tile.x + column),
                                  total + (y * tile.WIDTH + column) * pitch, channels);
            }
        }
    }

    // The rows of keys that a row of tiles reaches at most.
    void reached(const Pair& pair, const Band& band, Extent queries, int64_t row, int64_t& begin, int64_t& end) const {
        const Extent keys = extent_of(attention_.sources[pair.source].extent, band.plane.sample,
                                      attention_.sources[pair.source].key);
        const int64_t y = row * TILE_HEIGHT<T>, last = std::min(y + TILE_HEIGHT<T>, queries.height) - 1;
        Axis{queries.height, keys.height}.reached(y, last, pair.max_radius + attention_.softness, begin, end);
    }

    void begin_sources(const Band& band, Extent queries, Workspace<T>& work) const {
        const size_t pairs = attention_.pairs.size();
        if (work.keys.size() < pairs) {
            work.keys = std::vector<Buffer<T>>(pairs);
            work.values = std::vector<Buffer<T>>(pairs);
            work.packed_keys.resize(pairs);
            work.packed_values.resize(pairs);
        }
        if (band.first * TILE_HEIGHT<T> >= queries.height) return;
        for (size_t i = 0; i < pairs; ++i) {
            const Pair& pair = attention_.pairs[i];
            if (pair.level != band.level) continue;
            const KeyLevel& source = attention_.sources[pair.source];
            const int64_t width = extent_of(source.extent, band.plane.sample, source.key).width;
            int64_t first, capacity = 1;
            for (int64_t row = band.last - 1; row >= band.first; --row) {
                if (row * TILE_HEIGHT<T> >= queries.height) continue;
                int64_t end;
                reached(pair, band, queries, row, first, end);
                capacity = std::max(capacity, end - first);
            }
            work.packed_keys[i].begin(source.key, first, capacity, width, work.keys[i]);
            work.packed_values[i].begin(source.value, first, capacity, width, work.values[i]);
        }
    }

    void pack_sources(const Band& band, Extent queries, int64_t row, Workspace<T>& work) const {
        if (row * TILE_HEIGHT<T> >= queries.height) return;
        for (size_t i = 0; i < attention_.pairs.size(); ++i) {
            const Pair& pair = attention_.pairs[i];
            if (pair.level != band.level) continue;
            int64_t begin, end;
            reached(pair, band, queries, row, begin, end);
            work.packed_keys[i].reach(attention_.sources[pair.source].key, band.plane, end);
            work.packed_values[i].reach(attention_.sources[pair.source].value, band.plane, end);
        }
    }

    // What the next tile and the next row of tiles will read, and what this tile will write.
    void look_ahead(const Band& band, Extent queries, const Tile<T>& tile, Workspace<T>& work) const {
        const QueryLevel& level = attention_.levels[band.level];
        Ahead& ahead = work.ahead;
        ahead.clear();
        const Tile<T> next(tile.y, tile.x + TILE_WIDTH<T>, level.query, queries);
        HAMLET_ISA::look_ahead(next, level.query, band.plane, ahead);
        HAMLET_ISA::look_ahead(tile, level.out, band.plane, ahead);
        const int64_t row = tile.y / TILE_HEIGHT<T> + 1;
        if (row >= band.last || row * TILE_HEIGHT<T> >= queries.height) return;
        const int64_t number = tile.x / TILE_WIDTH<T>, parts = ceiling(level.query.size[2], TILE_WIDTH<T>);
        for (size_t i = 0; i < attention_.pairs.size(); ++i) {
            const Pair& pair = attention_.pairs[i];
            if (pair.level != band.level) continue;
            const KeyLevel& source = attention_.sources[pair.source];
            int64_t begin, end;
            reached(pair, band, queries, row, begin, end);
            work.packed_keys[i].look_ahead(source.key, band.plane, end, number, parts, ahead);
            work.packed_values[i].look_ahead(source.value, band.plane, end, number, parts, ahead);
        }
    }

    void pack_queries(const Tile<T>& tile, const View& query, Plane plane, Workspace<T>& work) const {
        T* rows = work.query_rows.room(LANES<T> * padded<T>(query.size[4]));
        T* lanes = work.query_lanes.room(LANES<T> * padded<T>(query.size[4]));
        pack_tile(tile, query, plane, rows);
        transpose(rows, query.size[4], T(attention_.scale * LOG2_E), lanes);
    }

    // total += gate * softmax(...) v of one pair; its log-sum-exp is written.
    void attend(const Pair& pair, int number, const Tile<T>& tile, Extent extent, Plane plane, T* out, T* total,
                Workspace<T>& work) const {
        constexpr T lowest = -std::numeric_limits<T>::infinity();
        if (tile.empty()) return tile.write(pair.lse, plane, broadcast<T>(lowest));
        const KeyLevel& source = attention_.sources[pair.source];
        const Extent keys = extent_of(source.extent, plane.sample, source.key);
        const Radii<T> radii(tile, pair.radius, plane, T(pair.max_radius));
        TileWindows<T> windows;
        windows.make(tile, extent, keys, radii, T(attention_.softness), work.row_weights, work.column_weights);

        const int64_t pitch = padded<T>(source.value.size[4]);
        std::fill_n(out, LANES<T> * pitch, T(0));
        Vector<T> largest = broadcast<T>(lowest), sum = {};
        int64_t row = windows.rows.begin, column = windows.columns.begin;
        for (bool first = true; work.list.fill(windows.rows, windows.columns, row, column,
                                               work.packed_keys[number].ring, 0, 0);
             first = false)
            add_chunk(work.packed_keys[number], work.packed_values[number], source, first, largest, sum, out, work);

        const Vector<T> gate = tile.read(pair.gate, plane, T(1), T(0));
        const Vector<T> some = where_not_negative<T>(-sum, Vector<T>{}, broadcast<T>(T(1)));
        const Vector<T> divisor = sum + (1 - some);
        const Vector<T> factor = gate / divisor * some + radii.poison;
        alignas(64) T factors[LANES<T>];
        store(factors, factor);
        for (int lane = 0; lane < LANES<T>; ++lane)
            for (int64_t d = 0; d < pitch; ++d) total[lane * pitch + d] += factors[lane] * out[lane * pitch + d];
        const Vector<T> lse = largest * T(LN_2) + log_of_positive<T>(divisor) + radii.poison;
        tile.write(pair.lse, plane, lse);
    }

    // Online softmax: what was summed so far is scaled to the new maximum, which is over keys that exist alone.
    void add_chunk(const Packed<T>& keys, const Packed<T>& values, const KeyLevel& source, bool first,
                   Vector<T>& largest, Vector<T>& sum, T* out, Workspace<T>& work) const {
        const KeyList<T>& list = work.list;
        const Vector<T> nothing = broadcast<T>(-std::numeric_limits<T>::infinity());
        logits_of(work.query_lanes.room(0), keys.rows, source.key.size[4], list.index, list.count, work.logits,
                  work.ahead);
        Vector<T> largest_now = largest;
        list.each([&](int k, Vector<T> weight) {
            work.logits[k] = where_not_negative<T>(weight, work.logits[k], nothing);
            largest_now = max<T>(largest_now, work.logits[k]);
        });
        const Vector<T> base = max<T>(largest_now, broadcast<T>(std::numeric_limits<T>::lowest()));
        const Vector<T> shrink = exp2_of_negative<T>(largest - base);
        Vector<T> sum_now = sum * shrink;
        list.each([&](int k, Vector<T> weight) {
            work.logits[k] = max<T>(weight, Vector<T>{}) * exp2_of_negative<T>(work.logits[k] - base);
            sum_now += work.logits[k];
        });
        sum = sum_now;
        const int64_t channels = source.value.size[4], pitch = padded<T>(channels);
        alignas(64) T factors[LANES<T>];
        store(factors, shrink);
        if (!first)
            for (int lane = 0; lane < LANES<T>; ++lane)
                for (int64_t d = 0; d < pitch; ++d) out[lane * pitch + d] *= factors[lane];
        largest = largest_now;
        if (values.finite) {
            weigh<T, true>(list, work.logits, values.rows, channels, out);
        } else {
            spoil(values, work);
            weigh<T, false>(list, work.logits, values.rows, channels, out);
        }
    }

    // A value that is not finite spoils the queries that reach it, and no other through 0 * NaN.
    void spoil(const Packed<T>& values, Workspace<T>& work) const {
        work.list.each([&](int k, Vector<T> weight) {
            if (!all_finite(values.rows.at(work.list.index[k]), values.rows.pitch))
                work.logits[k] = where_not_negative<T>(
                    weight, broadcast<T>(std::numeric_limits<T>::quiet_NaN()), Vector<T>{});
        });
    }
};

}  // namespace

void attention_forward(const Attention& attention) {
    if (attention.sources[0].key.dtype == DType::float64) Forward<double>(attention).run();
    else Forward<float>(attention).run();
}

}  // namespace hamlet::HAMLET_ISA
