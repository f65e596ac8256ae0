// What two states of an exploration may differ in without any influence on what comes: it is set to
// one value, so that they become one state.
//
//  - Incarnations. They are compared with those of older messages, of the same epoch's PREPAREs and
//    of the log. Connections keep their order and an epoch is logged once, so the comparisons have
//    the same outcome always.
//  - Causes and reasons, which are for people.
//  - The highest commit that the coordinator has heard of, once no planned change can come any more.
//  - Who was ready, outside Restoring, and who had finished, in Collecting: both are cleared before
//    they are read again.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "elastic/coordinator.h"
#include "elastic/membership.h"

namespace maniple::model {

class Canonical {
 public:
  template <class... T>
  void operator()(T&&... values) {
    (visit(values), ...);
  }

  void visit(Membership& machine) { Membership::fields(machine, Machine{*this}); }
  void visit(Coordinator& machine, Step last_step) {
    Coordinator::fields(machine, Center{*this, last_step});
  }
  void visit(std::string&) {}
  template <class T>
  void visit(std::vector<T>& values) {
    for (T& value : values) visit(value);
  }
  template <class K, class T>
  void visit(std::map<K, T>& values) {
    for (auto& [key, value] : values) visit(value);
  }
  template <class T>
  void visit(std::optional<T>& value) {
    if (value) visit(*value);
  }
  template <class... T>
  void visit(std::variant<T...>& value) {
    std::visit([this](auto& v) { visit(v); }, value);
  }
  template <class T>
  void visit(T& value) {
    if constexpr (std::is_class_v<T> && !std::is_const_v<T>) {
      T::fields(value, *this);
      if constexpr (requires { value.incarnation; }) value.incarnation = 1;
      if constexpr (requires { value.cause; }) value.cause.clear();
      if constexpr (requires { value.reason; }) value.reason.clear();
    }
  }

 private:
  struct Machine {  // the incarnation is the first field of a Membership
    Canonical& canonical;
    template <class... T>
    void operator()(Incarnation& incarnation, T&... rest) const {
      incarnation = 1;
      canonical(rest...);
    }
  };
  struct Center {
    Canonical& canonical;
    Step last_step;
    template <class... T>
    void operator()(T&&... values) const {
      (visit(values), ...);
    }
    void visit(std::string& cause) const { cause.clear(); }
    void visit(Step& max_step) const {
      if (max_step + 2 >= last_step) max_step = std::max<Step>(0, last_step - 2);
    }
    template <class T>
    void visit(T& value) const {
      canonical.visit(value);
    }
  };
};

// The bytes of a coordinator that decide what it will do.
class CoordinatorBytes {
 public:
  CoordinatorBytes(const Coordinator& machine, bool canonical)
      : canonical_(canonical), phase_(machine.phase()) {
    Coordinator::fields(machine, *this);
  }
  template <class... T>
  void operator()(const T&... values) {
    const bool one_ready = sizeof...(T) == 1;
    if (one_ready && canonical_ && phase_ != CoordinatorPhase::kRestoring) return;
    (put(values), ...);
  }
  const std::string& bytes() const { return encoder_.bytes(); }

 private:
  void put(const std::map<SliceId, std::vector<MetricRow>>& finished) {
    if (!canonical_ || phase_ != CoordinatorPhase::kCollecting) encoder_(finished);
  }
  template <class T>
  void put(const T& value) {
    encoder_(value);
  }
  bool canonical_;
  CoordinatorPhase phase_;
  WireEncoder encoder_;
};

}  // namespace maniple::model
