// Attention forward: query tiles against the keys that their radii reach, online softmax over chunks of keys.
#include <vector>

#include "attention.h"

namespace hamlet::HAMLET_ISA {
namespace {

template <class T, class S>
struct Workspace {
    Buffer<S> query_rows, query_lanes;
    Buffer<T> out, totals;
    TileWindows<T> windows;
    std::vector<Packed<T, S>> keys, values;
    KeyList<T> list;
    Vector<T> logits[CHUNK + PADDING];
};

// Rows of tiles [first, last) of one level, for some heads of one sample.
struct Band {
    int level;
    Heads heads;
    int64_t first, last;
};

// Computes in T, from rows packed as S.
template <class T, class S>
class Forward {
   public:
    explicit Forward(const Attention& attention) : attention_(attention) {}

    void run() const {
        std::vector<Band> bands;
        for (int level = 0; level < int(attention_.levels.size()); ++level) cut(level, bands);
        parallel_for(attention_.threads, int64_t(bands.size()), [&](int64_t item) {
            Workspace<T, S>& workspace = of_this_thread<Workspace<T, S>>();
            const ProductsInUse<S> products;
            run(bands[item], workspace);
        });
    }

   private:
    static constexpr bool SCALED = std::is_same_v<S, T>;  // whether the packed queries hold the scale: two bytes cannot

    const Attention& attention_;

    void cut(int level, std::vector<Band>& bands) const {
        const View& query = attention_.levels[level].query;
        const int64_t tile_rows = ceiling(query.size[1], TILE_HEIGHT<T>), wanted = 4 * attention_.threads;
        if (tile_rows == 0 || query.size[2] == 0) return;
        int64_t bytes = 1;
        for (const Pair& pair : attention_.pairs)
            if (pair.level == level) bytes += bytes_reached<T, S>(attention_, pair);
        const std::vector<Heads> groups = groups_of(query.size[0], query.size[3], bytes, wanted);
        const int64_t parts = parts_of(int64_t(groups.size()), tile_rows, wanted);
        for (const Heads& heads : groups)
            for (int64_t part = 0; part < parts; ++part)
                bands.push_back({level, heads, tile_rows * part / parts, tile_rows * (part + 1) / parts});
    }

    void run(const Band& band, Workspace<T, S>& work) const {
        const QueryLevel& level = attention_.levels[band.level];
        const Extent extent = extent_of(level.extent, band.heads.sample, level.query);
        begin_sources(band, extent, work);
        for (int64_t row = band.first; row < band.last; ++row) {
            pack_sources(band, extent, row, work);
            pack_queries(band, extent, row, work);
            const int64_t tiles = tiles_of(level), size = LANES<T> * padded<T>(level.out.size[4]);
            std::fill_n(work.totals.room(band.heads.count * tiles * size), band.heads.count * tiles * size, T(0));
            for (int64_t i = 0; i < tiles; ++i)
                for (size_t pair = 0; pair < attention_.pairs.size(); ++pair)
                    if (attention_.pairs[pair].level == band.level)
                        attend(int(pair), tile_of(level, extent, row, i), extent, band.heads, i, tiles, work);
            write(band, extent, row, work);
        }
    }

    static int64_t tiles_of(const QueryLevel& level) { return ceiling(level.query.size[2], TILE_WIDTH<T>); }

    static Tile<T> tile_of(const QueryLevel& level, Extent extent, int64_t row, int64_t number) {
        return Tile<T>(row * TILE_HEIGHT<T>, number * TILE_WIDTH<T>, level.query, extent);
    }

    void begin_sources(const Band& band, Extent queries, Workspace<T, S>& work) const {
        const size_t pairs = attention_.pairs.size();
        if (work.keys.size() < pairs) {
            work.keys = std::vector<Packed<T, S>>(pairs);
            work.values = std::vector<Packed<T, S>>(pairs);
        }
        if (band.first * TILE_HEIGHT<T> >= queries.height) return;
        for (size_t i = 0; i < pairs; ++i) {
            const Pair& pair = attention_.pairs[i];
            if (pair.level != band.level) continue;
            const KeyLevel& source = attention_.sources[pair.source];
            const int64_t width = extent_of(source.extent, band.heads.sample, source.key).width;
            int64_t first, capacity = 1;
            for (int64_t row = band.last - 1; row >= band.first; --row) {
                if (row * TILE_HEIGHT<T> >= queries.height) continue;
                int64_t end;
                reached<T>(attention_, pair, band.heads.sample, row, first, end);
                capacity = std::max(capacity, end - first);
            }
            work.keys[i].begin(source.key, band.heads, first, capacity, width);
            work.values[i].begin(source.value, band.heads, first, capacity, width);
        }
    }

    void pack_sources(const Band& band, Extent queries, int64_t row, Workspace<T, S>& work) const {
        if (row * TILE_HEIGHT<T> >= queries.height) return;
        for (size_t i = 0; i < attention_.pairs.size(); ++i) {
            const Pair& pair = attention_.pairs[i];
            if (pair.level != band.level) continue;
            int64_t begin, end;
            reached<T>(attention_, pair, band.heads.sample, row, begin, end);
            work.keys[i].reach(attention_.sources[pair.source].key, end);
            work.values[i].reach(attention_.sources[pair.source].value, end);
        }
    }

    // The queries of a row of tiles, with the queries in the lanes.
    void pack_queries(const Band& band, Extent extent, int64_t row, Workspace<T, S>& work) const {
        const QueryLevel& level = attention_.levels[band.level];
        const int64_t channels = level.query.size[4], size = LANES<T> * padded<S>(channels), tiles = tiles_of(level);
        S* rows = work.query_rows.room(band.heads.count * size);
        S* lanes = work.query_lanes.room(band.heads.count * tiles * size);
        for (int64_t i = 0; i < tiles; ++i) {
            const Tile<T> tile = tile_of(level, extent, row, i);
            for (int64_t head = 0; head < band.heads.count; ++head)
                pack_tile(tile, level.query, band.heads.plane(head), rows + head * size);
            for (int64_t head = 0; head < band.heads.count; ++head) {
                const S* own = rows + head * size;
                S* to = lanes + (head * tiles + i) * size;
                if constexpr (SCALED) transpose(own, channels, to, T(attention_.scale * LOG2_E));
                else transpose(own, channels, to);
            }
        }
    }

    void write(const Band& band, Extent extent, int64_t row, Workspace<T, S>& work) const {
        const QueryLevel& level = attention_.levels[band.level];
        const int64_t channels = level.out.size[4], pitch = padded<T>(channels), tiles = tiles_of(level);
        const T* totals = work.totals.room(0);
        with_storage<T>(level.out.dtype, [&](auto* storage) {
            using Stored = std::remove_pointer_t<decltype(storage)>;
            const Tile<T> first = tile_of(level, extent, row, 0);
            for (int y = 0; y < first.rows; ++y)
                for (int64_t x = 0; x < level.query.size[2]; ++x)
                    for (int64_t head = 0; head < band.heads.count; ++head) {
                        const int64_t place = (head * tiles + x / first.WIDTH) * LANES<T> + y * first.WIDTH + x % first.WIDTH;
                        write_first(totals + place * pitch, channels,
                                    reinterpret_cast<Stored*>(level.out.data) +
                                        band.heads.plane(head).offset(level.out, first.y + y, x));
                    }
        });
    }

    // One pair of a tile for all heads of the band. Which keys it reaches, and with what weights, the heads share unless
    // each has radii of its own.
    void attend(int number, const Tile<T>& tile, Extent extent, Heads heads, int64_t place, int64_t tiles,
                Workspace<T, S>& work) const {
        const Pair& pair = attention_.pairs[number];
        const KeyLevel& source = attention_.sources[pair.source];
        const Extent keys = extent_of(source.extent, heads.sample, source.key);
        const Ring ring = work.keys[number].ring;
        TileWindows<T>& windows = work.windows;
        if (!tile.empty()) windows.measure(tile, extent, keys, pair.max_radius + attention_.softness);
        bool listed = false;  // whether the list holds every key of the tile
        Radii<T> radii;
        for (int64_t head = 0; head < heads.count; ++head) {
            const Plane plane = heads.plane(head);
            if (tile.empty()) {
                tile.write(pair.lse, plane, broadcast<T>(-std::numeric_limits<T>::infinity()));
                continue;
            }
            if (head == 0 || (pair.radius && pair.radius.stride[3] != 0)) {
                radii = Radii<T>(tile, pair.radius, plane, T(pair.max_radius));
                windows.make(radii.clamped, T(attention_.softness));
                listed = false;
            }
            Softmax softmax{work.out.room(LANES<T> * padded<T>(source.value.size[4]))};
            std::fill_n(softmax.out, LANES<T> * padded<T>(source.value.size[4]), T(0));
            int64_t row = windows.rows.begin, column = windows.columns.begin;
            if (!listed) listed = work.list.fill(windows.rows, windows.columns, row, column, ring, 0, 0) && row == windows.rows.end;
            do add_chunk(number, head, head * tiles + place, softmax, work);
            while (!listed && work.list.fill(windows.rows, windows.columns, row, column, ring, 0, 0));
            finish(pair, tile, plane, radii.poison, softmax, head * tiles + place, work);
        }
    }

    struct Softmax {
        T* out;  // LANES rows, the weighted sum of the values so far
        bool begun = false;
        Vector<T> largest = broadcast<T>(-std::numeric_limits<T>::infinity()), sum = {};
    };

    // Online softmax: what was summed so far is scaled to the new maximum, which is over keys that exist alone.
    void add_chunk(int number, int64_t head, int64_t place, Softmax& softmax, Workspace<T, S>& work) const {
        const KeyLevel& source = attention_.sources[attention_.pairs[number].source];
        const KeyList<T>& list = work.list;
        Vector<T>* const logits = work.logits;
        const int64_t channels = source.key.size[4];
        const S* const queries = work.query_lanes.room(0) + place * LANES<T> * padded<S>(channels);
        const Vector<T> largest = max<T>(
            softmax.largest, multiply_keys(queries, list, work.keys[number].rows(head), channels, logits));
        const Vector<T> base = max<T>(largest, broadcast<T>(std::numeric_limits<T>::lowest()));
        const Vector<T> shrink = exp2_of_negative<T>(softmax.largest - base);
        softmax.sum = softmax.sum * shrink + exponentiate(list, base, logits);
        if (!softmax.begun) softmax.begun = true;
        else scale_rows(softmax.out, shrink, padded<T>(source.value.size[4]));
        softmax.largest = largest;
        const Rows<S> values = work.values[number].rows(head);
        if (work.values[number].finite) {
            weigh<T, true>(list, logits, values, source.value.size[4], softmax.out);
        } else {
            spoil(values, work);
            weigh<T, false>(list, logits, values, source.value.size[4], softmax.out);
        }
    }

    // Logits, -infinity out of reach; returns their maximum. Not inlined, so that all it needs finds a register.
    HAMLET_APART Vector<T> multiply_keys(const S* queries, const KeyList<T>& list, Rows<S> keys, int64_t channels,
                                         Vector<T>* logits) const {
        const T scale = SCALED ? T(1) : T(attention_.scale * LOG2_E);
        const Vector<T> nothing = broadcast<T>(-std::numeric_limits<T>::infinity());
        Vector<T> largest = nothing;
        multiply(queries, list, keys, channels, [&](int k, Vector<T> product) {
            const Vector<T> logit = SCALED ? product : scale * product;
            logits[k] = where_not_negative<T>(list.weights[k], logit, nothing);
            largest = max<T>(largest, logits[k]);
        });
        return largest;
    }

    // Logits become weights; returns their sum.
    HAMLET_APART static Vector<T> exponentiate(const KeyList<T>& list, Vector<T> base, Vector<T>* logits) {
        Vector<T> sum = {};
        for (int k = 0; k < list.count; ++k) {
            logits[k] = list.weights[k] * exp2_of_negative<T>(logits[k] - base);
            sum += logits[k];
        }
        return sum;
    }

    static void scale_rows(T* rows, Vector<T> factor, int64_t pitch) {
        alignas(64) T factors[LANES<T>];
        store(factors, factor);
        for (int lane = 0; lane < LANES<T>; ++lane)
            for (int64_t d = 0; d < pitch; ++d) rows[lane * pitch + d] *= factors[lane];
    }

    // total += gate * softmax(...) v of one pair; its log-sum-exp is written.
    void finish(const Pair& pair, const Tile<T>& tile, Plane plane, Vector<T> poison, const Softmax& softmax,
                int64_t place, Workspace<T, S>& work) const {
        const int64_t pitch = padded<T>(attention_.sources[pair.source].value.size[4]);
        const Vector<T> gate = tile.read(pair.gate, plane, T(1), T(0));
        const Vector<T> some = where_not_negative<T>(-softmax.sum, Vector<T>{}, broadcast<T>(T(1)));
        const Vector<T> divisor = softmax.sum + (1 - some);
        alignas(64) T factors[LANES<T>];
        store(factors, gate / divisor * some + poison);
        T* const total = work.totals.room(0) + place * LANES<T> * pitch;
        for (int lane = 0; lane < LANES<T>; ++lane)
            for (int64_t d = 0; d < pitch; ++d)
                total[lane * pitch + d] += factors[lane] * softmax.out[lane * pitch + d];
        tile.write(pair.lse, plane, softmax.largest * T(LN_2) + log_of_positive<T>(divisor) + poison);
    }

    // A value that is not finite spoils the queries that reach it, and no other through 0 * NaN.
    void spoil(Rows<S> values, Workspace<T, S>& work) const {
        const Vector<T> spoilt = broadcast<T>(std::numeric_limits<T>::quiet_NaN());
        for (int k = 0; k < work.list.count; ++k)
            if (!is_zero<T>(not_finite(values.at(work.list.index[k]), values.pitch)))
                work.logits[k] = where_not_negative<T>(work.list.weights[k], spoilt, Vector<T>{});
    }
};

}  // namespace

void attention_forward(const Attention& attention) {
#if defined(__AMX_BF16__)
    if (is_bfloat16(attention)) Forward<float, BFloat16>(attention).run();
    else avx512::attention_forward(attention);
#else
    if (attention.sources[0].key.dtype == DType::float64) Forward<double, double>(attention).run();
    else Forward<float, float>(attention).run();
#endif
}

}  // namespace hamlet::HAMLET_ISA
