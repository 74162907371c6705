// Plans by the content of their mask: the same ranges come back in every layer and at every step, in other tensors.
#pragma once

#include <memory>

#include "planner.h"

namespace videoar {

struct PlanRequest {
  RangeMaskView mask;
  int tile;     // 1 to kMaxTile
  bool by_key;  // plan_keys rather than plan_queries
};

// The plan, built now or earlier; null with a `reason` where the arrays are invalid. Any thread may call it, and a plan
// stays alive as long as somebody holds it.
std::shared_ptr<const TilePlan> cached_plan(const PlanRequest& request, const char*& reason);

struct PlanCacheState {
  int64_t hits, misses, plans, bytes;
};
PlanCacheState plan_cache_state();
void clear_plan_cache();

}  // namespace videoar
