/* The processor's matrix unit for pairs (Intel's AMX), where there is one that the system lets this process use.
   Its registers, tiles, are matrices of up to 16 rows of 64 bytes. */

#if defined(PAIRS) && defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__)
#define HAS_TILES
#include <sys/syscall.h>
#include <unistd.h>

#define EDGE 16 /* Rows of a tile, and words of its rows. */

static int tiles_allowed;

__attribute__((constructor)) static void ask_for_tiles(void) {
    const int request = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    tiles_allowed = !syscall(SYS_arch_prctl, request, tile_data);
}

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* All of them as large as they can be. */
INLINE tile_shapes whole_tiles(void) {
    tile_shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) shapes.row_bytes[i] = 4 * EDGE, shapes.rows[i] = EDGE;
    return shapes;
}

/* Some compilers do not know that the instruction reads all of the shapes: whatever is written is, before it. */
INLINE void load_shapes(const tile_shapes *shapes) {
    __asm__ volatile("" ::"r"(shapes) : "memory");
    _tile_loadconfig(shapes);
}
#endif
