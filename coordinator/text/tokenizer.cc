#include "coordinator/text/tokenizer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "coordinator/text/added_tokens.h"
#include "coordinator/text/bpe.h"
#include "coordinator/text/decoder.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/pre_tokenizer.h"
#include "coordinator/text/text_file.h"
#include "coordinator/text/unicode.h"
#include "nlohmann/json.hpp"
#include "proto/status.h"

namespace plumbline {
namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kMaxFileBytes = 256 << 20;  // the largest published ones have 35 MB

// What TemplateProcessing puts around a text.
struct Frame {
  std::vector<int32_t> before;
  std::vector<int32_t> after;
};

absl::Status AddTemplate(const nlohmann::json& json, Frame& frame) {
  constexpr char kPart[] = "post_processor TemplateProcessing";
  PL_ASSIGN_OR_RETURN(const nlohmann::json* single, ArrayField(json, "single", kPart));
  std::vector<int32_t> before, after;
  bool passed_text = false;
  for (const nlohmann::json& item : *single) {
    if (item.is_object() && item.contains("Sequence")) {
      passed_text = true;
      continue;
    }
    nlohmann::json ids;
    try {
      ids = json.at("special_tokens").at(item.at("SpecialToken").at("id")).at("ids");
      for (const nlohmann::json& id : ids.get_ref<const nlohmann::json::array_t&>()) {
        const bool fits = id.is_number_unsigned() && id.get<uint64_t>() <= INT32_MAX;
        (passed_text ? after : before).push_back(fits ? id.get<int32_t>() : -1);
      }
    } catch (const nlohmann::json::exception&) {
      return absl::InvalidArgumentError(absl::StrCat(
          kPart, ": ", item.dump(), " is neither a Sequence nor a SpecialToken with known ids"));
    }
  }
  frame.before.insert(frame.before.begin(), before.begin(), before.end());
  frame.after.insert(frame.after.end(), after.begin(), after.end());
  return absl::OkStatus();
}

absl::Status AddPostProcessors(const nlohmann::json& json, Frame& frame) {
  PL_ASSIGN_OR_RETURN(std::string type, TypeOf(json, "post_processor"));
  if (type == "Sequence") {
    PL_ASSIGN_OR_RETURN(const nlohmann::json* parts,
                        ArrayField(json, "processors", "post_processor"));
    for (const nlohmann::json& part : *parts) PL_RETURN_IF_ERROR(AddPostProcessors(part, frame));
    return absl::OkStatus();
  }
  if (type == "TemplateProcessing") return AddTemplate(json, frame);
  if (type == "ByteLevel") return absl::OkStatus();  // concerns offsets only
  return NotSupported("post_processor", type, "Sequence, TemplateProcessing, ByteLevel");
}

const nlohmann::json& FieldOrNull(const nlohmann::json& json, const char* key) {
  static const nlohmann::json null;
  auto it = json.find(key);
  return it == json.end() ? null : *it;
}

}  // namespace

struct Tokenizer::Impl {
  Bpe bpe;
  Normalizer normalizer;
  AddedTokens added_tokens;
  PreTokenizer pre_tokenizer;
  Decoder decoder;
  Frame frame;

  static absl::StatusOr<std::unique_ptr<Impl>> Parse(const nlohmann::json& json);
  // Ids of text without added tokens that stand before the normalizer.
  absl::Status EncodeText(std::string_view text, bool at_start, bool parse_special,
                          std::vector<int32_t>& ids) const;
};

absl::StatusOr<std::unique_ptr<Tokenizer::Impl>> Tokenizer::Impl::Parse(
    const nlohmann::json& json) {
  auto impl = std::make_unique<Impl>();
  PL_ASSIGN_OR_RETURN(impl->bpe, Bpe::Parse(FieldOrNull(json, "model")));
  PL_ASSIGN_OR_RETURN(impl->normalizer, Normalizer::Parse(FieldOrNull(json, "normalizer")));
  PL_ASSIGN_OR_RETURN(impl->pre_tokenizer, PreTokenizer::Parse(FieldOrNull(json, "pre_tokenizer")));
  PL_ASSIGN_OR_RETURN(impl->decoder, Decoder::Parse(FieldOrNull(json, "decoder")));
  PL_ASSIGN_OR_RETURN(impl->added_tokens, AddedTokens::Parse(FieldOrNull(json, "added_tokens"),
                                                             impl->bpe, impl->normalizer));
  const nlohmann::json& post_processor = FieldOrNull(json, "post_processor");
  if (!post_processor.is_null()) PL_RETURN_IF_ERROR(AddPostProcessors(post_processor, impl->frame));
  const int32_t num_ids = std::max(impl->bpe.num_ids(), impl->added_tokens.max_id() + 1);
  for (const auto* ids : {&impl->frame.before, &impl->frame.after}) {
    for (const int32_t id : *ids) {
      if (id >= 0 && id < num_ids) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("post_processor: id ", id, " is not in the vocabulary [0, ", num_ids, ")"));
    }
  }
  return impl;
}

absl::Status Tokenizer::Impl::EncodeText(std::string_view text, bool at_start, bool parse_special,
                                         std::vector<int32_t>& ids) const {
  PL_ASSIGN_OR_RETURN(std::string normalized, normalizer.Apply(text));
  for (const AddedSpan& span :
       added_tokens.Cut(normalized, AddedTokens::Stage::kAfterNormalizer, parse_special)) {
    if (span.id) {
      ids.push_back(*span.id);
      continue;
    }
    Word part = {.text = normalized.substr(span.begin, span.end - span.begin),
                 .at_start = at_start && span.begin == 0};
    PL_ASSIGN_OR_RETURN(std::vector<Word> words, pre_tokenizer.Apply(std::move(part)));
    for (const Word& word : words) bpe.Encode(word.text, ids);
  }
  return absl::OkStatus();
}

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  PL_ASSIGN_OR_RETURN(std::string json, ReadTextFile(path, kMaxFileBytes));
  return LoadFromJson(json, path);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::LoadFromJson(std::string_view text,
                                                                   const std::string& name) {
  if (NestsDeeperThan(text, kMaxDepth)) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": JSON is nested deeper than ", kMaxDepth, " levels"));
  }
  nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": not a JSON object"));
  }
  absl::StatusOr<std::unique_ptr<Impl>> impl = Impl::Parse(json);
  if (!impl.ok()) {
    return absl::Status(impl.status().code(), absl::StrCat(name, ": ", impl.status().message()));
  }
  return std::unique_ptr<Tokenizer>(new Tokenizer(*std::move(impl)));
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view utf8,
                                                       const EncodeOptions& options) const {
  if (size_t valid = ValidUtf8Prefix(utf8); valid < utf8.size()) {
    return absl::InvalidArgumentError(absl::StrCat("text is not UTF-8 at byte ", valid));
  }
  std::vector<int32_t> ids;
  ids.reserve(utf8.size() / 3 + 8);
  const Frame& frame = impl_->frame;
  if (options.add_special_tokens) ids = frame.before;
  for (const AddedSpan& span : impl_->added_tokens.Cut(utf8, AddedTokens::Stage::kBeforeNormalizer,
                                                       options.parse_special)) {
    if (span.id) {
      ids.push_back(*span.id);
      continue;
    }
    PL_RETURN_IF_ERROR(impl_->EncodeText(utf8.substr(span.begin, span.end - span.begin),
                                         span.begin == 0, options.parse_special, ids));
  }
  if (options.add_special_tokens) ids.insert(ids.end(), frame.after.begin(), frame.after.end());
  return ids;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, const DecodeOptions& options) const {
  std::string text;
  Decoder::State state = impl_->decoder.NewState();
  for (int32_t id : ids) {
    std::string_view token = TokenString(id);
    if (token.empty() || (options.skip_special_tokens && IsSpecial(id))) continue;
    impl_->decoder.Push(token, state, text);
  }
  impl_->decoder.Finish(state, text);
  return text;
}

std::string Tokenizer::TokenBytes(int32_t id) const {
  return impl_->decoder.BytesOf(TokenString(id));
}

std::string_view Tokenizer::TokenString(int32_t id) const {
  if (std::optional<std::string_view> added = impl_->added_tokens.TokenOf(id)) return *added;
  return impl_->bpe.TokenOf(id);
}

std::optional<int32_t> Tokenizer::IdOf(std::string_view token) const {
  if (std::optional<int32_t> id = impl_->added_tokens.IdOf(token)) return id;
  return impl_->bpe.IdOf(token);
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return impl_->added_tokens.IsSpecial(TokenString(id));
}

int Tokenizer::vocab_size() const {
  return std::max(impl_->bpe.num_ids(), impl_->added_tokens.max_id() + 1);
}

const Decoder& Tokenizer::decoder() const { return impl_->decoder; }

}  // namespace plumbline
