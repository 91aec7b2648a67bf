// SPDX-License-Identifier: Apache-2.0
/*
 * The contents of a page: 64-bit word i of page p is mix(seed, p) + i * WORD_STEP. A page that was
 * lost (and reads as zeros), moved, or left over from another seed differs in nearly all of its
 * bytes; one flipped bit is one wrong byte.
 */
#include <stdint.h>

#define PAGE_BYTES 4096u
#define WORDS_PER_PAGE (PAGE_BYTES / sizeof(uint64_t))
#define WORD_STEP UINT64_C(0x9e3779b97f4a7c15)

/* The finaliser of MurmurHash3: the first words of all seeds and pages are unrelated. */
static uint64_t mix(uint64_t seed, uint64_t page)
{
	uint64_t x = seed * WORD_STEP ^ (page + 1) * UINT64_C(0xc2b2ae3d27d4eb4f);

	x = (x ^ x >> 33) * UINT64_C(0xff51afd7ed558ccd);
	x = (x ^ x >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
	return x ^ x >> 33;
}

static unsigned int differing_bytes(uint64_t difference)
{
	unsigned int count = 0;

	for (; difference; difference >>= 8)
		count += (difference & 0xff) != 0;
	return count;
}

static void fill_page(uint64_t *word, uint64_t first)
{
	for (unsigned int i = 0; i < WORDS_PER_PAGE; i++, first += WORD_STEP)
		word[i] = first;
}

static uint64_t wrong_bytes(const uint64_t *word, uint64_t first)
{
	uint64_t wrong = 0;

	for (unsigned int i = 0; i < WORDS_PER_PAGE; i++, first += WORD_STEP)
		if (word[i] != first)
			wrong += differing_bytes(word[i] ^ first);
	return wrong;
}
